"""Everything that knows a Redis key: the job store, the queue, registries and the webhook outbox."""
