"""Diffusion pipelines. Only this package imports diffusers and transformers."""

import logging
import os

# Import-time advice of the libraries (missing torchvision and the like) does not belong in the log of a service.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
# Nor do the kernels of other machines that the packages of quantised weights try to load.
for package in ("torchao", "bitsandbytes", "torch.utils._pytree"):
    logging.getLogger(package).setLevel(logging.ERROR)
