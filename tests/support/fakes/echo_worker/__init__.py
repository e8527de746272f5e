"""A worker without a model. Replaces `img2img.worker` in processes with the parent folder in PYTHONPATH."""
