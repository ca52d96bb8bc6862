"""The evaluation protocols, one file each."""
