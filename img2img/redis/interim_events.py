"""Webhook events of running jobs: that they have started, and how far they are."""

from redis import Redis

from img2img.domain.job import JobRecord
from img2img.domain.webhook import PredictionWebhook
from img2img.errors import UnreadableJob
from img2img.redis import job_record, keys, scripts
from img2img.redis.clock import redis_clock
from img2img.redis.decode import decode

# Replicate sends events of one prediction at most this often.
INTERVAL_S = 0.5


class InterimEvents:
    """The running jobs whose webhooks want events before the end. An event is sent once, whatever the response."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._clock = redis_clock(redis)
        self._claim_script = scripts.register(redis, "claim_interim_events")

    def claim(self, limit: int, lease_s: float) -> list[JobRecord]:
        """Return up to `limit` running jobs with something to tell, and keep them from other dispatchers.

        A job is due again after INTERVAL_S, or after lease_s if `sent` is not called.
        """
        now = self._clock.now()
        claimed = self._claim_script(args=[now, now + lease_s, now + INTERVAL_S, limit])
        records = []
        for job_id, flat in claimed:
            try:
                records.append(job_record.from_fields(decode(job_id), dict(zip(flat[::2], flat[1::2], strict=True))))
            except UnreadableJob:
                # Another dispatcher, of a later version, may be able to read it.
                continue
        return records

    def sent(self, record: JobRecord) -> None:
        """Let the next event of the job be due, if there can be one."""
        if isinstance(record.webhook, PredictionWebhook) and "logs" in record.webhook.interim:
            self._redis.zadd(keys.INTERIM_EVENTS, {record.id: self._clock.now() + INTERVAL_S}, xx=True)
        else:
            self._redis.zrem(keys.INTERIM_EVENTS, record.id)
