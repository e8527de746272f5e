"""A worker without a model, which runs in place of `img2img.worker` where PYTHONPATH names the folder above."""
