"""What the front end and the workers share: the job, its record, its queue, its blobs. No web framework, no torch."""
