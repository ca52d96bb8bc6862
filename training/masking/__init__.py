"""Which patches are hidden."""
