"""Submits per second with presigned uploads, and the limit of the same machine: real HTTP, a real Redis, no worker.

    python -m benchmarks.presigned_submits

A submit is `POST /uploads` and `POST /img2img` with the image of the response; the image itself goes to a bucket, which
takes no part. Compared with `benchmarks.limit_server`, which does nothing but HTTP and the same Redis scripts. Both are
run in turns. The load is sent from this process, which shares the cores with the servers and Redis.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from benchmarks.api_server import ApiServer, run_api_servers

BUCKET = {
    "IMG2IMG_STORE_URL": "s3://images/img2img",
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_REGION": "us-east-1",
    # Nothing listens there.
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
}
UPLOAD = json.dumps(
    {"sha256": "0" * 64, "bytes": 500_000, "content_type": "image/png", "width": 640, "height": 480}
).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--submits", type=int, default=1500, help="submits of a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each server; the median counts")
    parser.add_argument("--servers", type=int, default=2, help="API servers")
    parser.add_argument("--connections", type=int, default=16, help="connections in all")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    options = parser.parse_args()
    # SIGTERM raises, so that processes are stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def limit(settings: object) -> list[str]:
        port, redis_url = str(settings.port), settings.resolved_redis_url  # type: ignore[attr-defined]
        return [sys.executable, "-m", "benchmarks.limit_server", port, redis_url]

    with ExitStack() as stack:
        sides = {
            "service": stack.enter_context(run_api_servers(options.servers, **BUCKET)),
            "limit": stack.enter_context(run_api_servers(options.servers, limit)),
        }
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for number in range(options.rounds + 1):
            for name, (redis_pid, servers) in sides.items():
                found = _measure(servers, redis_pid, options.submits if number else 200, options.connections)
                if number:
                    rounds[name].append(found)
                    print(f"{name}: {found['per_s']:.0f} submits/s", file=sys.stderr, flush=True)
    results = {name: {key: median(one[key] for one in found) for key in found[0]} for name, found in rounds.items()}
    print(_markdown(results, options.servers))
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=2) + "\n")


def _measure(servers: Sequence[ApiServer], redis_pid: int, submits: int, connections: int) -> dict[str, float]:
    """Return submits per second, processor time in milliseconds per submit of each part, and bytes per submit."""
    pids = [one.api_pid for one in servers]
    before = [_cpu_s(pids), _cpu_s([redis_pid]), time.process_time(), time.perf_counter()]
    sent = asyncio.run(_load([urlsplit(one.url).port or 0 for one in servers], submits, connections))
    after = [_cpu_s(pids), _cpu_s([redis_pid]), time.process_time(), time.perf_counter()]
    api, redis, client, wall = (end - start for start, end in zip(before, after, strict=True))
    return {
        "per_s": submits / wall,
        "api_ms": 1000 * api / submits,
        "redis_ms": 1000 * redis / submits,
        "client_ms": 1000 * client / submits,
        "bytes": sent / submits,
    }


def _cpu_s(pids: Sequence[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def _load(ports: Sequence[int], submits: int, connections: int) -> int:
    """Send submits, and return the bytes of all requests and responses."""
    left = iter(range(submits))
    counts = await asyncio.gather(*(_client(ports[number % len(ports)], left) for number in range(connections)))
    return sum(counts)


async def _client(port: int, left: "iter[int]") -> int:  # type: ignore[valid-type]
    """Submit over one connection until none are left. Returns the bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    total = 0
    for number in left:
        created, size = await _post(reader, writer, "/uploads", UPLOAD, 201)
        job = {"image": json.loads(created)["image"], "prompt": "a house by a lake", "strength": 0.6, "seed": number}
        _, more = await _post(reader, writer, "/img2img", json.dumps(job).encode(), 202)
        total += size + more
    writer.close()
    return total


async def _post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: bytes, status: int
) -> tuple[bytes, int]:
    """Send a request. Returns the body of the response, and the bytes of both."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    request = f"{head}\r\n\r\n".encode() + body
    writer.write(request)
    headers = await reader.readuntil(b"\r\n\r\n")
    length = int(headers.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
    response = await reader.readexactly(length)
    if int(headers[9:12]) != status:
        raise SystemExit(f"{path}: {headers.decode()}{response.decode()}")
    return response, len(request) + len(headers) + len(response)


def _markdown(results: dict[str, dict[str, float]], servers: int) -> str:
    cores = len(os.sched_getaffinity(0))
    lines = [
        "| server | submits/s | with all cores | API | Redis | client | bytes |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in results.items():
        parts = [one[part] for part in ("api_ms", "redis_ms", "client_ms")]
        times = " | ".join(f"{part:.2f} ms" for part in parts)
        with_all = 1000 * cores / sum(parts)
        lines.append(f"| {name} | {one['per_s']:.0f} | {with_all:.0f} | {times} | {one['bytes']:,.0f} |")
    share = results["service"]["per_s"] / results["limit"]["per_s"]
    lines += [
        "",
        f"{share:.0%} of the limit. {servers} servers, Redis and the client on {cores} CPU cores. With all cores:",
    ]
    lines.append("by the processor time of a submit, if no other process used them.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
