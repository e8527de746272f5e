"""The outbox: ends of jobs that a webhook is still to tell. Rows are written by the script that ends a job."""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import uuid4

from redis import Redis
from rq.utils import as_text

from img2img.domain.job import JobRecord
from img2img.domain.webhook import Delivery, DeliveryStatus
from img2img.redis.job_store import OUTBOX, RECORD, parse_record
from img2img.telemetry.logging import job_extra

ATTENDED = "i2i:courier"  # string with a time to live: a courier has looked for due rows within that time
OUTBOX_ROW = OUTBOX + ":{id}"  # hash: a job's record as it was when it ended, and `claim` and `tries` of couriers

SCAN = 1000  # rows that one claim looks at
KEPT_BY_HOST = 100  # rows of a busy host that stay in sight where there are more than that
ATTENDED_S = 30  # a courier looks every second at most; one with its hands full, when an attempt has timed out
DEFER_S = 5.0  # the others are looked at again after this, so that they do not hide those of other hosts
STALE_S = 7 * 24 * 3600.0  # a row that is overdue for this long is dropped: no courier has been there for a week

log = logging.getLogger(__name__)

# Takes due rows, for a while, into the hands of one courier. KEYS: outbox. ARGV: now, end of the lease, claim, most
# rows, most of one host, rows in hand by host as JSON, rows to look at, rows of a busy host to keep in sight, when to
# look again at others. Answers the rows taken, and whether it left any.
_CLAIM = """
local taken, busy, left, left_of = {}, cjson.decode(ARGV[6]), 0, {}
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[7])
local crowded = #due == tonumber(ARGV[7])
for _, id in ipairs(due) do
  local row = KEYS[1] .. ':' .. id
  local host = redis.call('HGET', row, 'webhook_host')
  if not host then
    redis.call('ZREM', KEYS[1], id)
  elseif #taken == tonumber(ARGV[4]) then
    left = 1
    break
  elseif (busy[host] or 0) >= tonumber(ARGV[5]) then
    left = 1
    left_of[host] = (left_of[host] or 0) + 1
    if crowded and left_of[host] > tonumber(ARGV[8]) then redis.call('ZADD', KEYS[1], ARGV[9], id) end
  else
    busy[host] = (busy[host] or 0) + 1
    redis.call('ZADD', KEYS[1], ARGV[2], id)
    redis.call('HSET', row, 'claim', ARGV[3])
    redis.call('HINCRBY', row, 'tries', 1)
    taken[#taken + 1] = {id, redis.call('HGETALL', row)}
  end
end
return {taken, left}
"""

# Writes down how an attempt went, if the row is still in the same hands. KEYS: outbox, row, record. ARGV: id, claim or
# "" for whoever has it, delivery, when to try again or "" for never.
_SETTLE = """
if ARGV[2] ~= '' and redis.call('HGET', KEYS[2], 'claim') ~= ARGV[2] then return 0 end
if ARGV[4] == '' then
  redis.call('DEL', KEYS[2])
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], ARGV[4], ARGV[1])
end
if redis.call('EXISTS', KEYS[3]) == 1 then redis.call('HSET', KEYS[3], 'delivery', ARGV[3]) end
return 1
"""


@dataclass(frozen=True)
class ClaimedDelivery:
    """An event in the hands of a courier until the lease ends."""

    record: JobRecord  # as it was when the job ended, whatever has become of it since
    claim: str
    attempt: int  # counted from 1
    lease_until: float


class WebhookOutbox:
    """The outbox of one Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._claim_script = redis.register_script(_CLAIM)
        self._settle_script = redis.register_script(_SETTLE)

    def claim(
        self, *, limit: int, lease_s: float, in_hand: Mapping[str, int], host_limit: int
    ) -> tuple[list[ClaimedDelivery], bool]:
        """Takes up to `limit` due events for lease_s seconds, and says whether it left any that are due.

        in_hand: events of each host that the caller has now; of one host it gets at most host_limit. An event whose
        courier dies is due again at the end of its lease, and the attempt counts.
        """
        now, claim, busy = time.time(), uuid4().hex, json.dumps(in_hand)
        args: list[str | float] = [
            now,
            now + lease_s,
            claim,
            limit,
            host_limit,
            busy,
            SCAN,
            KEPT_BY_HOST,
            now + DEFER_S,
        ]
        rows, left = self._claim_script(keys=[OUTBOX], args=args)
        claimed = []
        for raw_id, flat in rows:
            fields = {str(as_text(name)): value for name, value in zip(flat[::2], flat[1::2], strict=True)}
            job_id = str(as_text(raw_id))
            try:
                record = parse_record(job_id, fields)
            except (ValueError, KeyError):
                log.warning("its event cannot be read", extra=job_extra(job_id))
                self._settle(job_id, claim, Delivery(status=DeliveryStatus.FAILED, last_error="unreadable"))
                continue
            claimed.append(ClaimedDelivery(record, claim, int(fields["tries"]), now + lease_s))
        return claimed, bool(left)

    def heartbeat(self) -> None:
        """Says that a courier is there, for the next ATTENDED_S."""
        self._redis.set(ATTENDED, 1, ex=ATTENDED_S)

    def has_dispatcher(self) -> bool:
        """Whether a courier has been there lately."""
        return bool(self._redis.exists(ATTENDED))

    def pending_count(self) -> int:
        """How many events are still to tell, those that are tried again included."""
        return int(self._redis.zcard(OUTBOX))

    def record_attempt(self, claimed: ClaimedDelivery, delivery: Delivery) -> bool:
        """Writes down how an attempt went; it is tried again at `next_attempt_at`. False if it is in other hands."""
        return self._settle(claimed.record.id, claimed.claim, delivery)

    def drop_stale(self, limit: int = 100) -> None:
        """Gives up events that no courier has come for in a week."""
        overdue = self._redis.zrangebyscore(OUTBOX, "-inf", time.time() - STALE_S, 0, limit)
        for raw_id in overdue:
            gone = Delivery(status=DeliveryStatus.FAILED, last_error="no courier came for it")
            self._settle(str(as_text(raw_id)), "", gone)  # type: ignore[arg-type]

    def _settle(self, job_id: str, claim: str, delivery: Delivery) -> bool:
        keys = [OUTBOX, OUTBOX_ROW.format(id=job_id), RECORD.format(id=job_id)]
        args = [job_id, claim, delivery.model_dump_json(), delivery.next_attempt_at or ""]
        return bool(self._settle_script(keys=keys, args=args))
