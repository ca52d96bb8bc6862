"""Synthetic images: controllable rendering and sampling under feedback."""
