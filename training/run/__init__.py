"""One training run: its directory, state, logs, devices and loop."""
