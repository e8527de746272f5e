"""The clients of a chaos run: mixed jobs, sent until they are acknowledged, then waited for, cancelled or left."""

import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import httpx

from img2img.domain.parameters import DIFFUSION_SCHEDULERS
from tests.chaos.ledger import TERMINAL, Acknowledged, Ledger
from tests.chaos.workers import POISON
from tests.support.images import encoded, gradient

SIDE = 32  # pixels; a step takes milliseconds
STEPS = (2, 120)  # few and many alike: workers are to have jobs in hand when they are killed
SENDERS, WAITERS = 8, 16  # threads that send, and that stay with jobs which are waited for
TIMEOUT_S = 8.0
RETRY_S = 0.3
PRIORITIES = ("low", "normal", "normal", "high")
BEHAVIOURS = {"leave": 63, "wait": 8, "follow": 4, "cancel": 15, "deadline": 10}


@dataclass(frozen=True)
class Order:
    """A job that is to be sent, and what its client does then."""

    key: str  # of idempotency: a submit whose answer is lost is sent again
    due: float  # the share of the storm that is over then
    owner: int
    behaviour: str
    fields: dict[str, str]
    picture: bytes

    @property
    def poison(self) -> bool:
        return self.fields["prompt"] == POISON


def make_orders(count: int, poisons: int, webhook: str, seed: int) -> list[Order]:
    """Jobs of all kinds, spread evenly over the storm."""
    choose = random.Random(f"load {seed}")
    pictures = [encoded(gradient(SIDE, SIDE, blue=blue)) for blue in range(0, 250, 25)]
    poisonous = set(choose.sample(range(count // 10, count), poisons))
    orders = []
    for i in range(count):
        [behaviour] = choose.choices(list(BEHAVIOURS), list(BEHAVIOURS.values()))
        fields = {
            "prompt": choose.choice(["a house", "a red house", "a lake", "a house by a lake"]),
            "width": str(SIDE),
            "height": str(SIDE),
            "strength": f"{choose.uniform(0.3, 1):.2f}",
            "guidance_scale": choose.choice(["1", "2.5", "7"]),
            "num_inference_steps": str(round(STEPS[0] * (STEPS[1] / STEPS[0]) ** choose.random())),
            "scheduler": choose.choice(DIFFUSION_SCHEDULERS[:8]).value,
            "seed": str(choose.randrange(2**31)),
            "num_images": choose.choice("11112"),
            "priority": choose.choice(PRIORITIES),
        }
        if i in poisonous:
            fields["prompt"], behaviour = POISON, "leave"
        if behaviour == "deadline":
            fields["deadline_s"] = f"{choose.uniform(1, 10):.1f}"
        if behaviour == "cancel":
            fields["num_inference_steps"] = str(STEPS[1])
        if choose.random() < 0.25:
            fields["webhook"] = json.dumps({"url": webhook})
        orders.append(Order(f"{seed}-{i}", i / count, choose.randrange(3), behaviour, fields, choose.choice(pictures)))
    return orders


class Load:
    """Sends orders when they are due, from several threads."""

    def __init__(
        self,
        orders: Sequence[Order],
        urls: Sequence[str],
        keys: Sequence[str],
        ledger: Ledger,
        progress: Callable[[], float],
    ) -> None:
        """progress: which share of the storm is over."""
        self._urls, self._keys, self._ledger, self._progress = urls, keys, ledger, progress
        self._due: SimpleQueue[Order] = SimpleQueue()
        for order in orders:
            self._due.put(order)
        self._sent: SimpleQueue[tuple[Order, Acknowledged] | None] = SimpleQueue()
        self._senders = [threading.Thread(target=self._run, args=(self._send, i)) for i in range(SENDERS)]
        self._waiters = [threading.Thread(target=self._run, args=(self._stay, i)) for i in range(-WAITERS, 0)]
        self._threads = [*self._senders, *self._waiters]
        self._unserved = len(orders)
        self._lock = threading.Lock()
        self._give_up = threading.Event()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def left(self) -> int:
        """Orders that are not served to the end: not acknowledged, or with a client that still wants something."""
        return self._unserved

    def stop(self) -> None:
        self._give_up.set()
        for _ in self._waiters:
            self._sent.put(None)
        for thread in self._threads:
            if thread.ident:
                thread.join()

    def _run(self, do: Callable[["_Client"], bool], number: int) -> None:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as http:
            client = _Client(http, self._urls, self._keys, self._ledger, random.Random(f"client {number}"))
            more = True
            while more and not self._give_up.is_set():
                try:
                    more = do(client)
                except Exception as error:
                    self._ledger.breach(f"client: {type(error).__name__}: {error}")

    def _send(self, client: "_Client") -> bool:
        """Sends the next order until it is acknowledged. False when there are no more."""
        try:
            order = self._due.get_nowait()
        except Empty:
            return False
        while self._progress() < order.due and not self._give_up.is_set():
            time.sleep(0.1)
        while (view := client.submit(order)) is None:
            if self._give_up.is_set():
                self._ledger.breach(f"order {order.key} was never acknowledged")
                return False
            time.sleep(RETRY_S)
        job = Acknowledged(view["id"], order.owner, "webhook" in order.fields, order.poison)
        self._ledger.acknowledge(job)
        self._ledger.see(view)
        if order.behaviour in ("wait", "follow", "cancel"):
            self._sent.put((order, job))
        else:
            self._serve_one()
        return True

    def _serve_one(self) -> None:
        with self._lock:
            self._unserved -= 1

    def _stay(self, client: "_Client") -> bool:
        """Does with a job what its client wants, until the client is content. False when there are no more."""
        sent = self._sent.get()
        if sent is None:
            return False
        order, job = sent
        if order.behaviour == "cancel":
            self._give_up.wait(client.choose.uniform(0, 2))
        act = {"cancel": client.cancel, "follow": client.follow, "wait": client.wait}[order.behaviour]
        while not self._give_up.is_set() and not act(job):
            time.sleep(RETRY_S)
        self._serve_one()
        return True


class _Client:
    """One client: any front end will do, and what is not answered is asked again."""

    def __init__(
        self, http: httpx.Client, urls: Sequence[str], keys: Sequence[str], ledger: Ledger, choose: random.Random
    ) -> None:
        self._http, self._urls, self._keys, self._ledger = http, urls, keys, ledger
        self.choose = choose

    def _key(self, owner: int) -> dict[str, str]:
        return {"X-API-Key": self._keys[owner]}

    def submit(self, order: Order) -> dict[str, Any] | None:
        """The job; None if it was not acknowledged."""
        return self._ask(
            202,
            "POST",
            "/img2img",
            files={"image": order.picture},
            data=order.fields,
            headers=self._key(order.owner) | {"Idempotency-Key": order.key},
        )

    def wait(self, job: Acknowledged) -> bool:
        """Long polls. Returns whether it has ended."""
        view = self._ask(200, "GET", f"/jobs/{job.id}?wait=5", headers=self._key(job.owner))
        if view:
            self._ledger.see(view)
        return view is not None and view["status"] in TERMINAL

    def cancel(self, job: Acknowledged) -> bool:
        view = self._ask(200, "POST", f"/jobs/{job.id}/cancel", headers=self._key(job.owner))
        if view:
            self._ledger.see(view)
            job.cancelled = view["status"] == "cancelled"
        return view is not None

    def follow(self, job: Acknowledged) -> bool:
        """Server-Sent Events. Returns whether the end was told."""
        url, told = self.choose.choice(self._urls), False
        try:
            with self._http.stream(
                "GET", f"{url}/jobs/{job.id}/events", headers=self._key(job.owner), timeout=20
            ) as answer:
                self._count(answer, 200)
                name = ""
                for line in answer.iter_lines() if answer.status_code == 200 else ():
                    field, _, value = line.partition(": ")
                    if field == "event":
                        name = value
                    elif field == "data" and name in TERMINAL:
                        self._ledger.see(json.loads(value))
                        told = True
        except httpx.TransportError as error:
            self._ledger.count(f"no answer: {type(error).__name__}")
        return told

    def _ask(self, expected: int, method: str, path: str, **request: Any) -> dict[str, Any] | None:
        try:
            answer = self._http.request(method, self.choose.choice(self._urls) + path, **request)
        except httpx.TransportError as error:
            self._ledger.count(f"no answer: {type(error).__name__}")
            return None
        self._count(answer, expected)
        if answer.status_code != expected:
            return None
        view: dict[str, Any] = answer.json()
        return view

    def _count(self, answer: httpx.Response, expected: int) -> None:
        self._ledger.count(f"answer {answer.status_code}")
        if answer.status_code not in (expected, 503):
            said = answer.read().decode()
            self._ledger.breach(f"an answer of {answer.status_code} where {expected} or 503 belongs: {said[:300]}")
