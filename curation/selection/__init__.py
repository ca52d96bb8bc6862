"""What stays: top-k search, retrieval by seeds, k-means, hierarchical sampling."""
