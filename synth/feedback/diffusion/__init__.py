"""Diffusion models: loading, families of prediction, pixel pipelines, estimates of the clean picture."""
