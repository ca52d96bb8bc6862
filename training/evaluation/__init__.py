"""Evaluation protocols: one module each, listed in `training.evaluate`."""
