"""Diffusers and transformers: the only rooms that import them."""
