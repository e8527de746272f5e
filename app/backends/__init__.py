"""Calls to Redis and the blob store, which fail fast during an outage and do not hold up other requests."""
