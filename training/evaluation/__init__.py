"""Evaluation protocols: one module each, listed in `granary.training.evaluation.evaluate`."""
