"""Diffusion pipelines. Only this package imports diffusers and transformers."""

import os

# Import-time advice of the libraries (missing torchvision and the like) does not belong in the log of a service.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
