"""The kinds of run, one file each, and their registry."""
