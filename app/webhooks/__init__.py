"""Delivers webhooks: a process that sends signed HTTP requests for the events in the outbox."""
