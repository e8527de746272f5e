"""Clients of a chaos run: they submit mixed jobs until these are acknowledged, then wait, follow or cancel."""

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
from tests.chaos.observations import TERMINAL, AcknowledgedJob, Observations
from tests.chaos.poisoned_worker import POISON
from tests.support.images import encoded, gradient

SIDE = 32  # pixels; a step takes milliseconds
STEPS = (2, 120)  # fewest and most; workers should have jobs in flight when they are killed
SENDERS, FOLLOWERS = 8, 16  # threads that submit jobs, and that wait for jobs
TIMEOUT_S = 8.0
RETRY_S = 0.3
PRIORITIES = ("low", "normal", "normal", "high")
# Fields of a job that shows whether an API server accepts jobs.
PROBE = {"prompt": "a house", "width": str(SIDE), "height": str(SIDE), "num_inference_steps": "2"}
BEHAVIOURS = {"ignore": 63, "wait": 8, "follow": 4, "cancel": 15, "deadline": 10}


@dataclass(frozen=True)
class PlannedJob:
    """A job to submit, and the behaviour of its client afterwards."""

    idempotency_key: str  # a submission whose response is lost is sent again
    due: float  # share of the faults after which it is submitted
    owner: int
    behaviour: str
    fields: dict[str, str]
    image: bytes

    @property
    def is_poison(self) -> bool:
        return self.fields["prompt"] == POISON


def plan_jobs(count: int, poisons: int, webhook: str, seed: int) -> list[PlannedJob]:
    """Return jobs of all kinds, spread evenly over the faults."""
    choose = random.Random(f"load {seed}")
    images = [encoded(gradient(SIDE, SIDE, blue=blue)) for blue in range(0, 250, 25)]
    poisonous = set(choose.sample(range(count // 10, count), poisons))
    jobs = []
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
            fields["prompt"], behaviour = POISON, "ignore"
        if behaviour == "deadline":
            fields["deadline_s"] = f"{choose.uniform(1, 10):.1f}"
        if behaviour == "cancel":
            fields["num_inference_steps"] = str(STEPS[1])
        if choose.random() < 0.25:
            fields["webhook"] = json.dumps({"url": webhook})
        jobs.append(PlannedJob(f"{seed}-{i}", i / count, choose.randrange(3), behaviour, fields, choose.choice(images)))
    return jobs


class LoadGenerator:
    """Submits jobs when they are due, from several threads.

    Args:
        jobs: the jobs to submit.
        urls: the API servers.
        keys: API keys, by owner.
        observations: gets the jobs and their states.
        progress: returns the share of the faults that have been injected.
    """

    def __init__(
        self,
        jobs: Sequence[PlannedJob],
        urls: Sequence[str],
        keys: Sequence[str],
        observations: Observations,
        progress: Callable[[], float],
    ) -> None:
        self._urls, self._keys, self._observations, self._progress = urls, keys, observations, progress
        self._due: SimpleQueue[PlannedJob] = SimpleQueue()
        for job in jobs:
            self._due.put(job)
        self._sent: SimpleQueue[tuple[PlannedJob, AcknowledgedJob] | None] = SimpleQueue()
        self._senders = [threading.Thread(target=self._run, args=(self._send, i)) for i in range(SENDERS)]
        self._followers = [threading.Thread(target=self._run, args=(self._follow, i)) for i in range(-FOLLOWERS, 0)]
        self._threads = [*self._senders, *self._followers]
        self._unfinished = len(jobs)
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def unfinished(self) -> int:
        """Number of jobs that are not acknowledged yet, or whose client is not done."""
        return self._unfinished

    def stop(self) -> None:
        self._stopped.set()
        for _ in self._followers:
            self._sent.put(None)
        for thread in self._threads:
            if thread.ident:
                thread.join()

    def _run(self, do: Callable[["_Client"], bool], number: int) -> None:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as http:
            client = _Client(http, self._urls, self._keys, self._observations, random.Random(f"client {number}"))
            more = True
            while more and not self._stopped.is_set():
                try:
                    more = do(client)
                except Exception as error:
                    self._observations.add_violation(f"client: {type(error).__name__}: {error}")

    def _send(self, client: "_Client") -> bool:
        """Submit the next job until it is acknowledged. Return False if there are no more."""
        try:
            planned = self._due.get_nowait()
        except Empty:
            return False
        while self._progress() < planned.due and not self._stopped.is_set():
            time.sleep(0.1)
        while (view := client.submit(planned)) is None:
            if self._stopped.is_set():
                self._observations.add_violation(f"the job with key {planned.idempotency_key} was never acknowledged")
                return False
            time.sleep(RETRY_S)
        job = self._acknowledge(planned, view)
        if planned.behaviour in ("wait", "follow", "cancel"):
            self._sent.put((planned, job))
        else:
            self._finish_one()
        return True

    def wait_until_accepting(self) -> None:
        """Submit a job to each API server, and return when every one is acknowledged."""
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as http:
            for url in self._urls:
                key = f"probe-{time.monotonic_ns()}"
                planned = PlannedJob(key, 0, 0, "ignore", PROBE, encoded(gradient(SIDE, SIDE)))
                client = _Client(http, [url], self._keys, self._observations, random.Random(key))
                while (view := client.submit(planned)) is None:
                    time.sleep(RETRY_S)
                self._acknowledge(planned, view)

    def _acknowledge(self, planned: PlannedJob, view: dict[str, Any]) -> AcknowledgedJob:
        job = AcknowledgedJob(
            view["id"],
            planned.owner,
            "webhook" in planned.fields,
            planned.is_poison,
            float(planned.fields["deadline_s"]) if planned.behaviour == "deadline" else None,
        )
        self._observations.acknowledge(job)
        self._observations.observe(view)
        return job

    def _finish_one(self) -> None:
        with self._lock:
            self._unfinished -= 1

    def _follow(self, client: "_Client") -> bool:
        """Act on a job as its client behaves, until that succeeds. Return False if there are no more."""
        sent = self._sent.get()
        if sent is None:
            return False
        planned, job = sent
        if planned.behaviour == "cancel":
            self._stopped.wait(client.choose.uniform(0, 2))
        act = {"cancel": client.cancel, "follow": client.follow, "wait": client.wait}[planned.behaviour]
        while not self._stopped.is_set() and not act(job):
            time.sleep(RETRY_S)
        self._finish_one()
        return True


class _Client:
    """A client that chooses any API server for each request."""

    def __init__(
        self,
        http: httpx.Client,
        urls: Sequence[str],
        keys: Sequence[str],
        observations: Observations,
        choose: random.Random,
    ) -> None:
        self._http, self._urls, self._keys, self._observations = http, urls, keys, observations
        self.choose = choose

    def _key(self, owner: int) -> dict[str, str]:
        return {"X-API-Key": self._keys[owner]}

    def submit(self, planned: PlannedJob) -> dict[str, Any] | None:
        """Return the job, or None if it was not acknowledged."""
        return self._request(
            202,
            "POST",
            "/img2img",
            files={"image": planned.image},
            data=planned.fields,
            headers=self._key(planned.owner) | {"Idempotency-Key": planned.idempotency_key},
        )

    def wait(self, job: AcknowledgedJob) -> bool:
        """Long-poll once. Return whether the job has ended."""
        view = self._request(200, "GET", f"/jobs/{job.id}?wait=5", headers=self._key(job.owner))
        if view:
            self._observations.observe(view)
        return view is not None and view["status"] in TERMINAL

    def cancel(self, job: AcknowledgedJob) -> bool:
        view = self._request(200, "POST", f"/jobs/{job.id}/cancel", headers=self._key(job.owner))
        if view:
            self._observations.observe(view)
            job.is_cancelled = view["status"] == "cancelled"
        return view is not None

    def follow(self, job: AcknowledgedJob) -> bool:
        """Read Server-Sent Events. Return whether the end of the job was reported."""
        url, has_ended = self.choose.choice(self._urls), False
        try:
            with self._http.stream(
                "GET", f"{url}/jobs/{job.id}/events", headers=self._key(job.owner), timeout=20
            ) as response:
                self._count(response, 200)
                name = ""
                for line in response.iter_lines() if response.status_code == 200 else ():
                    field, _, value = line.partition(": ")
                    if field == "event":
                        name = value
                    elif field == "data" and name in TERMINAL:
                        self._observations.observe(json.loads(value))
                        has_ended = True
        except httpx.TransportError as error:
            self._observations.count(f"no response: {type(error).__name__}")
        return has_ended

    def _request(self, expected: int, method: str, path: str, **kwargs: Any) -> dict[str, Any] | None:
        try:
            response = self._http.request(method, self.choose.choice(self._urls) + path, **kwargs)
        except httpx.TransportError as error:
            self._observations.count(f"no response: {type(error).__name__}")
            return None
        self._count(response, expected)
        if response.status_code != expected:
            return None
        view: dict[str, Any] = response.json()
        return view

    def _count(self, response: httpx.Response, expected: int) -> None:
        self._observations.count(f"HTTP {response.status_code}")
        if response.status_code not in (expected, 503, 507):
            body = response.read().decode()
            self._observations.add_violation(f"HTTP {response.status_code} instead of {expected} or 503: {body[:300]}")
