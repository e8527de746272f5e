"""Decodes untrusted images in sandboxed subprocesses with memory and CPU limits and no secrets."""
