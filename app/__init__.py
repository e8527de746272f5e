"""The HTTP side of img2img. Never imports torch, diffusers or the worker."""
