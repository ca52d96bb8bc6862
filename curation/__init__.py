"""Image pools, decoding, encoders, the threshold join, components, retrieval, clusters, ledger, shards, report."""
