"""Networks, their weights and checkpoints, and the registry that reads every way to name one."""
