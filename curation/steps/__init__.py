"""The steps of a curation run: what one work unit of each stage reads, computes and writes. No Beam here."""
