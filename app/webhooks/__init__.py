"""Delivers webhooks: a dispatcher process that sends signed HTTP requests from the outbox."""
