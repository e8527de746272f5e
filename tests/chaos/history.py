"""The witness: every state that every job ever had, read from the file to which Redis appends each of its writes."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from img2img.domain.job import TRANSITIONS, JobStatus
from img2img.redis.keys import JOB

PREFIX = JOB.format(id="").encode()


class Rewritten(Exception):
    """Redis has rewritten the file, which holds the last state only."""


def commands(file: Path) -> Iterator[list[bytes]]:
    """The commands in an append-only file, as far as they are whole: a killed Redis may leave half of one."""
    data, at = file.read_bytes(), 0
    if data.startswith(b"REDIS"):
        raise Rewritten
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


def states(folder: Path) -> dict[str, list[JobStatus]]:
    """By job id, its states in their order, the first one `queued`. Raises Rewritten."""
    files = sorted(file for file in folder.rglob("appendonly*.aof") if not file.name.endswith(".base.aof"))
    found: defaultdict[str, list[JobStatus]] = defaultdict(list)
    for file in files:
        for command in commands(file):
            if command[0].upper() not in (b"HSET", b"HMSET") or not command[1].startswith(PREFIX):
                continue
            fields = dict(zip(command[2::2], command[3::2], strict=True))
            if b"status" in fields:
                found[command[1].removeprefix(PREFIX).decode()].append(JobStatus(fields[b"status"].decode()))
    return dict(found)


def wrong(history: list[JobStatus]) -> str | None:
    """What is not right with the states of a job that should have ended; None if nothing."""
    said = " > ".join(history)
    if history[0] is not JobStatus.QUEUED:
        return f"did not begin as queued: {said}"
    for before, after in pairwise(history):
        if after not in TRANSITIONS[before]:
            return f"an illegal move: {said}"
    ends = sum(state.is_terminal for state in history)
    return None if ends == 1 else f"{ends} ends: {said}"
