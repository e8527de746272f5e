"""Delivers webhooks: takes ends of jobs from the outbox and posts them, signed, to where they are wanted."""
