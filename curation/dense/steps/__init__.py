"""The stages of a pack run: what a work unit does, without Beam.

records ─ shards ─ texts ─ pairs, then ledger and dead letters.
"""
