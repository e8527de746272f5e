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

from img2img.domain.webhook import Delivery, DeliveryStatus
from img2img.redis.webhook_outbox import ClaimedDelivery, WebhookOutbox
from img2img.telemetry.logging import job_context
from img2img.telemetry.tracing import Tracer

from ..schemas.events import JobEvent
from .http_sender import DeliveryResponse, HttpSender
from .retry_policy import retry_delay_s
from .signing import WebhookSigner

IN_FLIGHT = 200  # attempts at the same time; each is a socket that mostly waits
PER_HOST = 8  # of them to one host, so that a slow one does not hold up the others
LOOK_S, BUSY_LOOK_S = 0.3, 0.05  # how often the outbox is looked at, and while something due waits for its turn
ATTEND_S = 3.0  # how often it says that it is there
OUTAGE_S = 1.0  # between two tries while Redis is away
MARGIN_S = 5.0  # by which a lease outlasts the longest attempt
USER_AGENT = f"img2img/{version('img2img-server')}"

log = logging.getLogger(__name__)


class WebhookDispatcher:
    """Delivers until it is told to stop. Others may be at work on the same outbox."""

    def __init__(
        self,
        outbox: WebhookOutbox,
        poster: HttpSender,
        signers: WebhookSigner,
        *,
        timeout_s: float,
        traces: Tracer = Tracer(),  # noqa: B008
    ) -> None:
        self._outbox = outbox
        self._poster = poster
        self._signers = signers
        self._traces = traces
        self._lease_s = timeout_s + MARGIN_S
        self._attend_at = 0.0
        self._in_hand: Counter[str] = Counter()  # attempts in flight, by host

    async def run(self, stop: asyncio.Event) -> None:
        """Returns when `stop` is set and the attempts in flight have ended."""
        async with asyncio.TaskGroup() as attempts:
            while not stop.is_set():
                pause_s = await self._take(attempts)
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), pause_s)

    async def _take(self, attempts: asyncio.TaskGroup) -> float:
        """Starts on what is due. Returns after how many seconds to look again."""
        room = IN_FLIGHT - self._in_hand.total()
        if room <= 0:
            return BUSY_LOOK_S
        try:
            claimed, left = await run_sync(self._claim, room)
        except RedisError as error:
            log.info("Redis is unavailable, retrying: %s", error)
            return OUTAGE_S
        for one in claimed:
            self._in_hand[_host(one)] += 1
            attempts.create_task(self._deliver(one))
        return BUSY_LOOK_S if left else LOOK_S

    def _claim(self, room: int) -> tuple[list[ClaimedDelivery], bool]:
        if time.monotonic() >= self._attend_at:
            self._outbox.heartbeat()
            self._attend_at = time.monotonic() + ATTEND_S
        in_hand = {host: count for host, count in self._in_hand.items() if count}
        return self._outbox.claim(limit=room, lease_s=self._lease_s, in_flight=in_hand, host_limit=PER_HOST)

    async def _deliver(self, claimed: ClaimedDelivery) -> None:
        with job_context(claimed.record.id, claimed.record.traceparent):
            await self._try(claimed)

    async def _try(self, claimed: ClaimedDelivery) -> None:
        try:
            with self._traces.span("webhook", claimed.record.traceparent):
                answer = await self._attempt(claimed)
            await self._settle(claimed, delivery_after_attempt(claimed.attempt, answer, time.time(), random.random()))  # noqa: S311
        except Exception:
            log.exception("the delivery of its end")  # due again when the lease ends
        finally:
            self._in_hand[_host(claimed)] -= 1
            self._in_hand += Counter()  # forgets hosts with none

    async def _attempt(self, claimed: ClaimedDelivery) -> DeliveryResponse:
        webhook = claimed.record.webhook
        assert webhook is not None
        body = JobEvent.from_record(claimed.record).model_dump_json()
        signed = self._signers.headers(claimed.record.id, body, time.time())
        headers = {"content-type": "application/json", "user-agent": USER_AGENT, **signed}
        return await self._poster.post(str(webhook.url), headers, body.encode())

    async def _settle(self, claimed: ClaimedDelivery, delivery: Delivery) -> None:
        """Does not let go before Redis has it, or the lease is over."""
        while True:
            try:
                await run_sync(self._outbox.record_attempt, claimed, delivery)
                break
            except RedisError:
                if time.time() > claimed.lease_until:
                    raise
                await asyncio.sleep(OUTAGE_S)
        said = delivery.last_error or f"answered {delivery.last_status}"
        log.info("its end is %s, attempt %d: %s", delivery.status, delivery.attempts, said)


def delivery_after_attempt(attempt: int, answer: DeliveryResponse, now: float, chance: float) -> Delivery:
    """How a delivery stands after an attempt, counted from 1. chance: 0 to 1, drawn evenly."""
    delay_s = None if answer.is_final else retry_delay_s(attempt, answer.retry_after_s, chance)
    if answer.is_delivered:
        status = DeliveryStatus.DELIVERED
    else:
        status = DeliveryStatus.FAILED if delay_s is None else DeliveryStatus.PENDING
    return Delivery(
        status=status,
        attempts=attempt,
        last_attempt_at=now,
        next_attempt_at=None if delay_s is None else now + delay_s,
        last_status=answer.status,
        last_error=answer.error,
    )


def _host(claimed: ClaimedDelivery) -> str:
    webhook = claimed.record.webhook
    return webhook.host if webhook else ""
