"""Delivers due webhooks from the outbox and records the result of each attempt."""

import asyncio
import logging
import random
import time
from collections import Counter
from contextlib import suppress
from importlib.metadata import version

from anyio.to_thread import run_sync
from redis.exceptions import RedisError

from img2img.domain.job import JobRecord
from img2img.domain.job_batch import BatchRecord
from img2img.domain.webhook import Delivery, DeliveryStatus, PredictionWebhook
from img2img.redis.interim_events import InterimEvents
from img2img.redis.webhook_outbox import ClaimedDelivery, WebhookOutbox
from img2img.telemetry.logging import job_context
from img2img.telemetry.tracing import Tracer

from ..schemas.batches import BatchEvent
from ..schemas.events import JobEvent
from ..schemas.predictions import Prediction
from .host_timeouts import HostTimeouts
from .http_sender import DeliveryResponse, HttpSender
from .retry_policy import retry_delay_s
from .signing import WebhookSigner

# Attempts in flight in this process. Each is a socket that mostly waits.
MAX_IN_FLIGHT = 200
# Attempts in flight of one owner to one host, so that a slow receiver does not delay the others.
MAX_IN_FLIGHT_PER_HOST = 8
# Events of running jobs that are started together.
MAX_INTERIM = 50
# Time between reads of the outbox, and while due events wait for an attempt to end.
POLL_S, BUSY_POLL_S = 0.3, 0.05
HEARTBEAT_S = 3.0
# Pause before a retry while Redis is unavailable.
OUTAGE_S = 1.0
# A lease lasts this much longer than the longest attempt.
LEASE_MARGIN_S = 5.0
USER_AGENT = f"img2img/{version('img2img-server')}"

log = logging.getLogger(__name__)


class WebhookDispatcher:
    """Delivers webhooks until it is stopped. Several dispatchers can share an outbox.

    Args:
        timeout_s: Timeout of an attempt.
    """

    def __init__(
        self,
        outbox: WebhookOutbox,
        interim: InterimEvents,
        sender: HttpSender,
        signer: WebhookSigner,
        *,
        timeout_s: float,
        tracer: Tracer = Tracer(),  # noqa: B008
    ) -> None:
        self._outbox = outbox
        self._interim = interim
        self._sender = sender
        self._signer = signer
        self._tracer = tracer
        self._lease_s = timeout_s + LEASE_MARGIN_S
        self._heartbeat_at = 0.0
        self._timeouts = HostTimeouts(timeout_s)
        self._in_flight: Counter[tuple[str, str]] = Counter()  # by owner and host

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop` is set, then wait for the attempts in flight."""
        async with asyncio.TaskGroup() as attempts:
            while not stop.is_set():
                pause_s = await self._start_due(attempts)
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), pause_s)

    async def _start_due(self, attempts: asyncio.TaskGroup) -> float:
        """Start attempts for due events, and return the seconds until the next call."""
        free = MAX_IN_FLIGHT - self._in_flight.total()
        if free <= 0:
            return BUSY_POLL_S
        try:
            claimed, has_more = await run_sync(self._claim, free)
            interim = await run_sync(self._interim.claim, min(free, MAX_INTERIM), self._lease_s)
        except RedisError as error:
            log.info("Redis is unavailable, retrying: %s", error)
            return OUTAGE_S
        for delivery in claimed:
            self._in_flight[_owner_and_host(delivery.record)] += 1
            attempts.create_task(self._deliver(delivery))
        for record in interim:
            attempts.create_task(self._deliver_interim(record))
        return BUSY_POLL_S if has_more else POLL_S

    def _claim(self, limit: int) -> tuple[list[ClaimedDelivery], bool]:
        if time.monotonic() >= self._heartbeat_at:
            self._outbox.heartbeat()
            self._heartbeat_at = time.monotonic() + HEARTBEAT_S
        in_flight = {key: count for key, count in self._in_flight.items() if count}
        return self._outbox.claim(
            limit=limit,
            lease_s=self._lease_s,
            in_flight=in_flight,
            owner_limit=owner_limit(len({owner for owner, _ in in_flight})),
            host_limit=MAX_IN_FLIGHT_PER_HOST,
        )

    async def _deliver(self, claimed: ClaimedDelivery) -> None:
        with job_context(claimed.record.id, claimed.record.traceparent):
            try:
                with self._tracer.span("webhook", claimed.record.traceparent):
                    response = await self._send(claimed.record, claimed.record.id)
                now = self._outbox.clock.estimate()
                delivery = delivery_after_attempt(claimed.attempt, response, now, random.random())  # noqa: S311
                await self._record(claimed, delivery)
            except Exception:
                # The event is due again when its lease expires.
                log.exception("webhook attempt failed unexpectedly")
            finally:
                self._in_flight[_owner_and_host(claimed.record)] -= 1
                # Drop those without attempts.
                self._in_flight += Counter()

    async def _deliver_interim(self, record: JobRecord) -> None:
        """Send an event of a running job, once. It is left out while too many events go to the same host."""
        owner_and_host = _owner_and_host(record)
        if self._in_flight[owner_and_host] >= MAX_IN_FLIGHT_PER_HOST:
            return
        self._in_flight[owner_and_host] += 1
        try:
            await self._send(record, f"{record.id}-{record.step}")
            await run_sync(self._interim.sent, record)
        except Exception:
            # The next event is due when the lease expires.
            log.exception("webhook of a running job failed unexpectedly")
        finally:
            self._in_flight[owner_and_host] -= 1
            self._in_flight += Counter()

    async def _send(self, record: JobRecord | BatchRecord, event_id: str) -> DeliveryResponse:
        webhook = record.webhook
        assert webhook is not None
        body = event_of(record).model_dump_json()
        signature = self._signer.headers(event_id, body, time.time())
        headers = {"content-type": "application/json", "user-agent": USER_AGENT, **signature}
        timeout_s = self._timeouts.timeout_s(webhook.host)
        response = await self._sender.post(str(webhook.url), headers, body.encode(), timeout_s)
        self._timeouts.record(webhook.host, has_responded=response.status is not None)
        return response

    async def _record(self, claimed: ClaimedDelivery, delivery: Delivery) -> None:
        """Record the result of an attempt, retrying while Redis is unavailable until the lease expires."""
        while True:
            try:
                await run_sync(self._outbox.record_attempt, claimed, delivery)
                break
            except RedisError:
                if self._outbox.clock.estimate() > claimed.lease_until:
                    raise
                await asyncio.sleep(OUTAGE_S)
        result = delivery.last_error or f"status {delivery.last_status}"
        log.info("webhook attempt %d: %s (%s)", delivery.attempts, delivery.status, result)


def event_of(record: JobRecord | BatchRecord) -> JobEvent | BatchEvent | Prediction:
    """Return the body of the webhook for a job or for the end of a batch. A prediction has the body of Replicate's."""
    if isinstance(record, JobRecord) and isinstance(record.webhook, PredictionWebhook):
        without_inputs = record.model_copy(update={"spec": record.spec.without_inputs()})
        return Prediction.from_record(without_inputs, record.webhook.base_url)
    return BatchEvent.from_record(record) if isinstance(record, BatchRecord) else JobEvent.from_record(record)


def delivery_after_attempt(attempt: int, response: DeliveryResponse, now: float, jitter: float) -> Delivery:
    """Return the delivery status after an attempt.

    Args:
        attempt: Number of the attempt, from 1.
        now: Time of the attempt, in seconds since the epoch, by the clock of Redis.
        jitter: Uniform random number from 0 to 1.
    """
    delay_s = None if response.is_final else retry_delay_s(attempt, response.retry_after_s, jitter)
    if response.is_delivered:
        status = DeliveryStatus.DELIVERED
    else:
        status = DeliveryStatus.FAILED if delay_s is None else DeliveryStatus.PENDING
    return Delivery(
        status=status,
        attempts=attempt,
        last_attempt_at=now,
        next_attempt_at=None if delay_s is None else now + delay_s,
        last_status=response.status,
        last_error=response.error,
    )


def owner_limit(active_owners: int) -> int:
    """Return how many attempts of one owner may be in flight: an equal share, with one to spare for another owner."""
    return max(1, MAX_IN_FLIGHT // (max(1, active_owners) + 1))


def _owner_and_host(record: JobRecord | BatchRecord) -> tuple[str, str]:
    return record.owner, record.webhook.host if record.webhook else ""
