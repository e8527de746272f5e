"""Diffusers and transformers: the only rooms that import them."""

import os

# Advice of the libraries on import (missing torchvision and the like) is for people at a prompt, not for a log.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
