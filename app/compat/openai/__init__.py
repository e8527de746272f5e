"""OpenAI's Images API: `POST /v1/images/edits` and `/v1/images/variations`, for unmodified clients.

https://platform.openai.com/docs/api-reference/images/createEdit. With a mask, its transparent part is regenerated.
Without a mask, a model with the task `edit` follows the prompt as an instruction; other models do image-to-image.
Fields of `POST /img2img` (`seed`, `strength`, ...) can be sent as extra fields.
"""
