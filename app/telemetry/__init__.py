"""Metrics, access log and traces of the API server."""
