"""A run's folder: part files and markers, vectors, ledger look-ups, explanations, summaries."""
