"""Instructions about one or several pictures, whose answers are texts, boxes or masks (VistaLLM, arXiv 2312.12423)."""
