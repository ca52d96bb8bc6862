"""Diffusion under classifier feedback: criteria, guidance, sampler and a small generator of one's own."""
