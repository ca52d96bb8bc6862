"""The ground: URLs and bytes, threads, hashed sampling, the sample's schema."""
