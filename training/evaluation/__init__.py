"""Evaluation: what protocols share, and the protocols, one module each in `granary.training.evaluation.protocols`."""
