"""Near duplicates: the exact join, components, semantic deduplication."""
