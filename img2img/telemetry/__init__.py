"""Logging and tracing, shared by all processes."""
