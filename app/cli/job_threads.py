"""Threads of a command with several jobs: one submits the jobs, others read their events."""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

from img2img.client import (
    Client,
    ClientError,
    Event,
    Job,
    JobGone,
    JobNotFound,
    ServiceUnavailable,
    ServiceUnreachable,
    TooManyRequests,
)
from img2img.domain.job import JobStatus

from .inputs import Input
from .journal import Entry, Journal, key_of
from .outputs import Outputs

# Event streams that are open at once. Jobs end about in the order in which they were submitted.
STREAMS = 16


@dataclass(frozen=True)
class Submitted:
    """A job that was submitted by this command, or an earlier one."""

    entry: Entry
    job: Job
    is_new: bool


@dataclass(frozen=True)
class Finished:
    """An input whose results were saved by an earlier command."""

    entry: Entry


@dataclass(frozen=True)
class Rejected:
    """An input without a job."""

    name: str
    error: ClientError | OSError


# What the threads report: an input was sent, an event of a job or the error that ended its stream, or an error that
# ends the command.
Update = Submitted | Finished | Rejected | tuple[str, Event | Exception] | Exception


class Sender:
    """Submits a job for each image, one after the other.

    Args:
        updates: Gets the outcome for each image.
        service: URL of the service.
        journal: Where inputs and jobs are recorded, so that no image is submitted again.
        restart: Submit all images, also those that the journal has.

    Attributes:
        active: Entries by the ids of the jobs that may not have ended. The thread adds to them, the caller removes.
        unsent: Images that are not submitted yet.
    """

    def __init__(
        self, client: Client, updates: SimpleQueue[Update], *, service: str, journal: Journal | None, restart: bool
    ) -> None:
        self._client = client
        self._updates = updates
        self._service = service
        self._journal = journal
        self._restart = restart
        self.active: dict[str, Entry] = {}
        self.unsent = 0

    def start(
        self, inputs: list[Input], fields: Mapping[str, Any], outputs: Outputs, idempotency_key: str | None
    ) -> None:
        """Send the images in a thread, one after the other. The main thread handles errors."""
        keys = _Keys(idempotency_key, several=len(inputs) > 1)
        settings = (self._service, outputs.pattern, outputs.format, outputs.quality, idempotency_key)
        self.unsent = len(inputs)

        def send() -> None:
            for one in inputs:
                try:
                    update: Update = self._send(one, fields, keys, settings)
                except ServiceUnreachable as error:
                    self._updates.put(error)
                    return
                except (ClientError, OSError) as error:
                    update = Rejected(one.name, error)
                except Exception as error:
                    self._updates.put(error)
                    return
                self.unsent -= 1
                self._updates.put(update)

        threading.Thread(target=send, daemon=True).start()

    def _send(
        self, one: Input, fields: Mapping[str, Any], keys: "_Keys", settings: tuple[Any, ...]
    ) -> Submitted | Finished:
        image = one.read()
        key = key_of(one.name, one.repeat, image, fields, settings)
        entry = self._journal.find(key) if self._journal and not self._restart else None
        if entry and self._journal and self._journal.is_done(entry):
            return Finished(entry)
        if entry and entry.id:
            job = self._unless_lost(entry.id)
            if job:
                self.active[job.id] = entry
                return Submitted(entry, job, is_new=False)
            entry = None
        if entry is None:
            entry = Entry(key, one.name, keys.next(image))
            self._record(entry)
        job = self._submit_when_possible(entry, {"image": image, **fields})
        entry = replace(entry, id=job.id)
        self.active[job.id] = entry
        self._record(entry)
        return Submitted(entry, job, is_new=True)

    def _submit_when_possible(self, entry: Entry, fields: Mapping[str, Any]) -> Job:
        """Submit a job. While the queue is full, wait for the jobs that were submitted before."""
        while True:
            try:
                return self._client.submit(idempotency_key=entry.idempotency_key, **fields)
            except (TooManyRequests, ServiceUnavailable) as error:
                if error.retry_after_s is None or not self.active:
                    raise

    def _unless_lost(self, job_id: str) -> Job | None:
        """Return an earlier job, or None if it has no results: it is submitted again."""
        try:
            job = self._client.get_job(job_id)
        except (JobNotFound, JobGone):
            return None
        return None if job.status in (JobStatus.FAILED, JobStatus.CANCELLED) else job

    def _record(self, entry: Entry) -> None:
        if self._journal:
            self._journal.record(entry)


class EventReaders:
    """Read the events of jobs.

    Args:
        updates: Gets the events, and the errors that end streams.
    """

    def __init__(self, client: Client, updates: SimpleQueue[Update]) -> None:
        self._client = client
        self._updates = updates
        self._to_follow: SimpleQueue[str] = SimpleQueue()
        self._streams = 0

    def follow(self, job_id: str, *, preview: bool) -> None:
        """Follow a job. Daemon threads read the streams, so that Ctrl-C interrupts the main thread at once."""
        self._to_follow.put(job_id)
        if self._streams < STREAMS:
            self._streams += 1
            threading.Thread(target=self._read_streams, args=(preview,), daemon=True).start()

    def _read_streams(self, preview: bool) -> None:
        while True:
            job_id = self._to_follow.get()
            try:
                for event in self._client.stream_events(job_id, preview=preview):
                    self._updates.put((job_id, event))
            # The main thread handles it.
            except Exception as error:
                self._updates.put((job_id, error))


class _Keys:
    """Makes the idempotency keys of a command.

    Args:
        given: Key that the user chose. Each of several images gets a key derived from it and from the image, so that
            the keys do not depend on the order of the images.
    """

    def __init__(self, given: str | None, *, several: bool) -> None:
        self._given = given
        self._several = several
        self._seen: Counter[str] = Counter()

    def next(self, image: bytes | str) -> str:
        """Return the key for the next image."""
        if not self._given:
            return uuid4().hex
        if not self._several:
            return self._given
        key = f"{self._given}-{sha256(image if isinstance(image, bytes) else image.encode()).hexdigest()[:16]}"
        self._seen[key] += 1
        return key if self._seen[key] == 1 else f"{key}-{self._seen[key]}"
