"""Progress of a job: event streams, long polling, ETAs, deadlines and result formats."""
