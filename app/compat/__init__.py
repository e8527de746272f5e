"""Compatibility APIs (OpenAI Images, AUTOMATIC1111) on top of the same jobs."""
