"""Latency of `GET /jobs/{id}` while many clients follow running jobs by Server-Sent Events.

    python -m benchmarks.followers

Starts one API server process with its own Redis and without a worker. Progress of the running jobs is written as a
worker does it, and the clients read their streams from sockets. Clients, server and Redis share the machine.
"""

import argparse
import asyncio
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
from redis import Redis

from benchmarks.api_server import ApiServer, run_api_server
from img2img.redis.job_store import JobStore, Progress

STEPS = 10_000
UPDATE_S = 0.2  # between two changes of a job
GET_S = 0.05  # between two measured requests
CPU_TICKS = os.sysconf("SC_CLK_TCK")


class Followers:
    """Clients that read the event streams of jobs."""

    def __init__(self, url: str) -> None:
        self._host, self._port = urlsplit(url).hostname, urlsplit(url).port
        self.events = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def follow(self, job_id: str) -> None:
        """Connect, and count the events from now on."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
        status = await reader.readline()
        if b" 200 " not in status:
            raise SystemExit(f"the API server responded with {status.decode()}")
        self._tasks.add(asyncio.create_task(self._count(reader, writer)))

    async def _count(self, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        # The connection is closed with the last reference to the writer.
        while data := await reader.read(65536):
            self.events += data.count(b"event: ")

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--followers", type=int, nargs="+", default=[0, 100, 500])
    parser.add_argument("--jobs", type=int, default=16, help="running jobs")
    parser.add_argument("--seconds", type=float, default=10, help="length of each measurement")
    options = parser.parse_args()
    rows = []
    with run_api_server() as server:
        ids = server.fill(options.jobs + 10, 10)[: options.jobs]
        for count in options.followers:
            print(f"{count} followers", file=sys.stderr, flush=True)
            rows.append(asyncio.run(_measure(server, ids, count, options.seconds)))
    print("| followers | events/s, of at most | CPU of the API server | GET p50 | p95 | max |")
    print("|---:|---:|---:|---:|---:|---:|")
    print("\n".join(rows))
    print(
        f"\n- machine: {len(os.sched_getaffinity(0))} CPU cores ({platform.machine()}), with load "
        f"{os.getloadavg()[0]:.1f} at the end"
    )
    print(f"- {options.jobs} running jobs, each changes every {UPDATE_S} s; a GET every {GET_S} s")


async def _measure(server: ApiServer, ids: Sequence[str], count: int, seconds: float) -> str:
    followers = Followers(server.url)
    for i in range(count):
        await followers.follow(ids[i % len(ids)])
    latencies: list[float] = []
    changes = asyncio.create_task(asyncio.to_thread(_change, server, ids, seconds))
    await asyncio.sleep(1.0)
    followers.events, cpu_s, started = 0, _cpu_s(server.api_pid), time.monotonic()
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=60) as http:
        at = 0
        while not changes.done():
            sent = time.perf_counter()
            (await http.get(f"/jobs/{ids[at % len(ids)]}")).raise_for_status()
            latencies.append(time.perf_counter() - sent)
            at += 1
            await asyncio.sleep(GET_S)
    await changes
    passed = time.monotonic() - started
    events, cpu = followers.events / passed, (_cpu_s(server.api_pid) - cpu_s) / passed
    await followers.close()
    p50, p95, most = (1000 * value for value in np.percentile(latencies, (50, 95, 100)))
    return (
        f"| {count} | {events:.0f}, {count / UPDATE_S:.0f} | {cpu:.0%} | {p50:.0f} ms | {p95:.0f} ms | {most:.0f} ms |"
    )


def _change(server: ApiServer, ids: Sequence[str], seconds: float) -> None:
    """Write the progress of all jobs, spread over the interval."""
    with Redis.from_url(server.redis_url) as redis:
        store = JobStore(redis)
        executions = {job_id: (store.find(job_id).execution or "", store.find(job_id).step) for job_id in ids}
        due, until = time.monotonic(), time.monotonic() + seconds + 1
        for step in range(1, STEPS):
            for job_id, (execution, first) in executions.items():
                store.record_progress([Progress(job_id, execution, first + step, 10 * STEPS)])
                due += UPDATE_S / len(ids)
                time.sleep(max(0.0, due - time.monotonic()))
            if due > until:
                return


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CPU_TICKS


if __name__ == "__main__":
    main()
