"""Hugging Face's inference API for the task image-to-image, for unmodified clients whose model is a URL.

https://huggingface.co/docs/inference-providers/tasks/image-to-image. A request is the image, or JSON with the image as
base64 and parameters; the response is an image. Parameters can be fields of `POST /img2img`.
"""
