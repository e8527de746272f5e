"""The OpenAPI document: everything that FastAPI cannot derive from the routes."""
