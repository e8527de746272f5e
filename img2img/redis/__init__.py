"""Everything that uses Redis: job records, the queue, registries and the webhook outbox."""
