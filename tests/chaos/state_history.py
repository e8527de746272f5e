"""The states of every job, read from the append-only file in which Redis records all writes."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from img2img.domain.job import TRANSITIONS, JobStatus
from img2img.redis.keys import JOB

PREFIX = JOB.format(id="").encode()


class FileRewritten(Exception):
    """Redis has compacted the file, so that earlier states are missing."""


def read_commands(file: Path) -> Iterator[list[bytes]]:
    """Yield the complete commands of an append-only file. A killed Redis may leave an incomplete one at the end.

    Raises:
        FileRewritten: the file begins with a snapshot.
    """
    data, at = file.read_bytes(), 0
    if data.startswith(b"REDIS"):
        raise FileRewritten
    while at < len(data) and data[at : at + 1] == b"*":
        end = data.find(b"\r\n", at)
        if end < 0:
            return
        count, at = int(data[at + 1 : end]), end + 2
        command = []
        for _ in range(count):
            end = data.find(b"\r\n", at)
            if end < 0:
                return
            length = int(data[at + 1 : end])
            at = end + 2 + length + 2
            command.append(data[end + 2 : at - 2])
        if at > len(data):
            return
        yield command


def read_states(folder: Path) -> dict[str, list[JobStatus]]:
    """Return the states of each job in order, by job id. Raises FileRewritten."""
    files = sorted(file for file in folder.rglob("appendonly*.aof") if not file.name.endswith(".base.aof"))
    states: defaultdict[str, list[JobStatus]] = defaultdict(list)
    for file in files:
        for command in read_commands(file):
            if command[0].upper() not in (b"HSET", b"HMSET") or not command[1].startswith(PREFIX):
                continue
            fields = dict(zip(command[2::2], command[3::2], strict=True))
            if b"status" in fields:
                states[command[1].removeprefix(PREFIX).decode()].append(JobStatus(fields[b"status"].decode()))
    return dict(states)


def find_error(states: list[JobStatus]) -> str | None:
    """Return the error in the states of a job that should have ended, or None."""
    path = " > ".join(states)
    if states[0] is not JobStatus.QUEUED:
        return f"does not begin as queued: {path}"
    for before, after in pairwise(states):
        if after not in TRANSITIONS[before]:
            return f"illegal transition: {path}"
    ends = sum(state.is_terminal for state in states)
    return None if ends == 1 else f"{ends} terminal states: {path}"
