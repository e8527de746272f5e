"""The outbox of webhook events. Scripts add the event of a job or batch at its end; webhook dispatchers deliver it."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import uuid4

from redis import Redis

from img2img.domain.job import JobRecord
from img2img.domain.job_batch import BatchRecord
from img2img.domain.webhook import Delivery, DeliveryStatus
from img2img.errors import UnreadableJob
from img2img.redis import job_batches, job_record, keys, scripts
from img2img.redis.clock import redis_clock
from img2img.redis.decode import decode
from img2img.telemetry.logging import job_extra

# Due events that one claim looks at. The next claim goes on from there.
PAGE_SIZE = 1000
# A dispatcher claims every second at least; with all its connections in use, when an attempt has timed out.
HEARTBEAT_TTL_S = 30
# An event that is overdue for this long is dropped: no dispatcher has been running for a week.
STALE_S = 7 * 24 * 3600.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClaimedDelivery:
    """An event that one dispatcher delivers until its lease ends.

    Attributes:
        record: The job, or the batch of jobs, as it was when it ended.
        claim: Id of the claim.
        attempt: Number of this attempt, from 1.
        lease_until: End of the lease, in seconds since the epoch, by the clock of Redis.
    """

    record: JobRecord | BatchRecord
    claim: str
    attempt: int
    lease_until: float


class WebhookOutbox:
    """The outbox, as one dispatcher sees it: it looks at the due events page by page."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.clock = redis_clock(redis)
        self._claim_script = scripts.register(redis, "claim_webhooks")
        self._attempt_script = scripts.register(redis, "record_webhook_attempt")
        self._offset = 0

    def claim(
        self,
        *,
        limit: int,
        lease_s: float,
        in_flight: Mapping[tuple[str, str], int],
        owner_limit: int,
        host_limit: int,
    ) -> tuple[list[ClaimedDelivery], bool]:
        """Claim up to `limit` due events for lease_s seconds.

        Events of owners and hosts at their limit are skipped. So that many of them do not hide those of others,
        each call goes on behind the page that the last one looked at, and begins again after the last page.
        If the dispatcher dies, its events are due again at the end of the lease, and the attempt counts.

        Args:
            limit: Most events to claim.
            lease_s: Duration of the lease.
            in_flight: Number of events that the dispatcher is delivering, by owner and host.
            owner_limit: Most events in flight of one owner.
            host_limit: Most events in flight of one owner for one host.

        Returns:
            The events, and whether other events are due.
        """
        now, claim = self.clock.now(), uuid4().hex
        by_owner: dict[str, dict[str, int]] = {}
        for (owner, host), number in in_flight.items():
            by_owner.setdefault(owner, {})[host] = number
        args: list[str | float] = [now, now + lease_s, claim, limit, owner_limit, host_limit, json.dumps(by_owner)]
        args += [self._offset, PAGE_SIZE]
        events, looked_at, skipped = self._claim_script(args=args)
        has_more = bool(skipped or self._offset or looked_at == PAGE_SIZE or len(events) == limit)
        self._offset = self._offset + skipped if looked_at == PAGE_SIZE or len(events) == limit else 0
        return [event for event in (self._parse(raw, claim, now + lease_s) for raw in events) if event], has_more

    def _parse(self, event: tuple[bytes, list[bytes]], claim: str, lease_until: float) -> ClaimedDelivery | None:
        job_id, flat = decode(event[0]), event[1]
        fields = {decode(name): value for name, value in zip(flat[::2], flat[1::2], strict=True)}
        try:
            is_batch = "total" in fields
            record = job_batches.from_fields(job_id, fields) if is_batch else job_record.from_fields(job_id, fields)
        except (UnreadableJob, ValueError):
            # It can be claimed again after the lease, also by a process of a later version.
            log.warning("the event cannot be read", extra=job_extra(job_id))
            return None
        return ClaimedDelivery(record, claim, int(fields["tries"]), lease_until)

    def heartbeat(self) -> None:
        """Report for HEARTBEAT_TTL_S that a dispatcher is running."""
        self._redis.set(keys.WEBHOOK_HEARTBEAT, 1, ex=HEARTBEAT_TTL_S)

    def has_dispatcher(self) -> bool:
        """Return whether a dispatcher is running."""
        return bool(self._redis.exists(keys.WEBHOOK_HEARTBEAT))

    def pending_count(self) -> int:
        """Return the number of events to deliver, including those that will be retried."""
        return int(self._redis.zcard(keys.OUTBOX))

    def record_attempt(self, claimed: ClaimedDelivery, delivery: Delivery) -> bool:
        """Record the result of an attempt; the next one is at `next_attempt_at`.

        Returns False if another dispatcher has claimed the event.
        """
        return self._record_attempt(claimed.record.id, claimed.claim, delivery)

    def drop_stale(self, limit: int = 100) -> None:
        """Drop events that no dispatcher has claimed for STALE_S."""
        overdue = self._redis.zrangebyscore(keys.OUTBOX, "-inf", self.clock.now() - STALE_S, 0, limit)
        failed = Delivery(status=DeliveryStatus.FAILED, last_error="no webhook dispatcher was running")
        for job_id in map(decode, overdue):
            self._record_attempt(job_id, "", failed)

    def _record_attempt(self, job_id: str, claim: str, delivery: Delivery) -> bool:
        args = [job_id, claim, delivery.model_dump_json(), delivery.next_attempt_at or ""]
        return bool(self._attempt_script(args=args))
