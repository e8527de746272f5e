"""Replicate's HTTP API for predictions, files and models, for unmodified clients.

https://replicate.com/docs/reference/http. A prediction is a job. Its input has the fields of `POST /img2img`, and some
of Replicate's names for them.
"""
