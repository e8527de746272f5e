"""Price and loss of each IMG2IMG_DURABILITY: real redis-servers that are killed while jobs are submitted.

    python -m benchmarks.durability
    REDIS_7_SERVER=/path/to/redis-server python -m benchmarks.durability

Price: the modes are measured in turns, one submit after another by one client, on the disk of the temporary folder.
Loss: four clients submit, Redis is killed with SIGKILL at random and started again, or its replica takes over, and the
acknowledged jobs are counted. A slow disk is one on which fdatasync takes longer; a C compiler builds the library that
waits. Modes that need WAITAOF are left out without a Redis 7.2 or later.
"""

import argparse
import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from redis import Redis
from redis.exceptions import RedisError

from benchmarks.api_server import SPEC
from img2img.app.supervisor.embedded_redis import find_redis_server
from img2img.app.supervisor.supervisor import free_port
from img2img.errors import NotConfirmed
from img2img.redis.durability import TIMEOUT_S, Durability, DurableWrites
from img2img.redis.job_queue import JobQueue
from img2img.redis.keys import JOB
from tests.support.processes import wait_for
from tests.support.redis_servers import NO_WAITAOF, RedisServer, find_redis_7, slow_disk

CLIENTS = 4
Row = dict[str, str | float]


@dataclass(frozen=True)
class Mode:
    """A durability and the Redis that provides it."""

    name: str
    durability: Durability
    appendfsync: str
    server: str


def modes() -> list[Mode]:
    server, server_7 = find_redis_server(), find_redis_7()
    found = [
        Mode("everysec", Durability.EVERYSEC, "everysec", server),
        Mode("always: appendfsync always", Durability.ALWAYS, "always", server),
        Mode("replica: WAIT", Durability.REPLICA, "everysec", server),
    ]
    if server_7 is None:
        _log(NO_WAITAOF)
        return found
    return [
        *found,
        Mode("everysec", Durability.EVERYSEC, "everysec", server_7),
        Mode("always: WAITAOF and appendfsync everysec", Durability.ALWAYS, "everysec", server_7),
        Mode("always: WAITAOF and appendfsync always", Durability.ALWAYS, "always", server_7),
        Mode("replica: WAIT", Durability.REPLICA, "everysec", server_7),
    ]


class Deployment:
    """A Redis, with a replica if the mode needs one."""

    def __init__(self, mode: Mode, folder: Path, fsync_s: float) -> None:
        environment = slow_disk(folder, fsync_s) if fsync_s else {}
        if environment is None:
            raise SystemExit("a slow disk needs a C compiler: cc")
        self.mode = mode
        self._servers: list[RedisServer] = []
        self._folder = folder
        self._options = {"server": mode.server, "environment": environment, "appendfsync": mode.appendfsync}
        self.replica: RedisServer | None = None

    def start(self) -> None:
        self.primary = self._start_server()
        self.version = str(self.primary.redis.info("server")["redis_version"])
        self._add_replica()

    def _start_server(self) -> RedisServer:
        self.port = free_port()
        folder = self._folder / f"{len(self._servers)}"
        self._servers.append(RedisServer(folder, **{"port": str(self.port), **self._options}))  # type: ignore[arg-type]
        return self._servers[-1]

    def _add_replica(self) -> None:
        if self.mode.durability is not Durability.REPLICA:
            return
        port = self.port
        self.replica = replica = self._start_server()
        replica.redis.replicaof("127.0.0.1", port)  # type: ignore[arg-type]
        wait_for(lambda: replica.redis.info("replication")["master_link_status"] == "up", 120)
        wait_for(lambda: self.primary.redis.info("replication")["connected_slaves"], 120)

    def queue(self) -> JobQueue:
        redis = Redis.from_url(self.primary.url, socket_timeout=TIMEOUT_S + 2)
        return JobQueue(redis, writes=DurableWrites(redis, self.mode.durability))

    def kill_and_recover(self) -> None:
        """Kill Redis. Start it again, or let its replica take over."""
        self.primary.kill()
        if self.replica is None:
            self.primary.start()
            return
        self.replica.redis.replicaof("NO", "ONE")  # type: ignore[arg-type]
        self.primary = self.replica

    def after_recovery(self) -> None:
        self._add_replica()

    def stop(self) -> None:
        for server in self._servers:
            server.kill()


@contextmanager
def deployed(mode: Mode, fsync_s: float) -> Iterator[Deployment]:
    # A short path, because it contains unix sockets.
    with TemporaryDirectory(prefix="i2i-") as folder:
        deployment = Deployment(mode, Path(folder), fsync_s)
        try:
            deployment.start()
            yield deployment
        finally:
            deployment.stop()


def measure_price(chosen: Sequence[Mode], submits: int) -> list[Row]:
    """Return the duration of a submit in each mode."""
    times: dict[int, list[float]] = {i: [] for i in range(len(chosen))}
    versions = {}
    for _ in range(4):
        for i, mode in enumerate(chosen):
            with deployed(mode, 0) as deployment:
                versions[i] = deployment.version
                queue = deployment.queue()
                queue.submit(SPEC)
                # A mode in which a submit takes a second is measured less often.
                stop_at = time.monotonic() + 10
                for _ in range(submits // 4):
                    start = time.perf_counter()
                    queue.submit(SPEC)
                    times[i].append((time.perf_counter() - start) * 1000)
                    if time.monotonic() > stop_at:
                        break
    return [
        {
            "mode": mode.name,
            "redis": versions[i],
            "submits": len(times[i]),
            "p50_ms": median(times[i]),
            "p95_ms": sorted(times[i])[int(len(times[i]) * 0.95)],
        }
        for i, mode in enumerate(chosen)
    ]


class Clients:
    """Clients that submit without a pause until they are stopped."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._stopped = threading.Event()
        self.acknowledged: list[str] = []
        self.unconfirmed = 0
        self._threads = [threading.Thread(target=self._submit, daemon=True) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _submit(self) -> None:
        queue = self._deployment.queue()
        while not self._stopped.is_set():
            try:
                self.acknowledged.append(queue.submit(SPEC).id)
            except NotConfirmed:
                self.unconfirmed += 1
            except RedisError:
                return

    def join(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def measure_loss(mode: Mode, fsync_s: float, kills: int, seed: int) -> Row:
    """Kill Redis while clients submit, and return how many acknowledged jobs are gone."""
    choose = random.Random(seed)
    acknowledged = lost = unconfirmed = 0
    with deployed(mode, fsync_s) as deployment:
        for _ in range(kills):
            clients = Clients(deployment)
            time.sleep(choose.uniform(0.6, 3.0))
            deployment.kill_and_recover()
            clients.join()
            redis = deployment.primary.redis
            found = (
                redis.exists(*(JOB.format(id=job_id) for job_id in clients.acknowledged)) if clients.acknowledged else 0
            )
            acknowledged += len(clients.acknowledged)
            lost += len(clients.acknowledged) - found
            unconfirmed += clients.unconfirmed
            deployment.after_recovery()
        version = deployment.version
    row: Row = {"mode": mode.name, "redis": version, "fsync_s": fsync_s, "kills": kills}
    return row | {"acknowledged": acknowledged, "lost": lost, "not_confirmed": unconfirmed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--submits", type=int, default=400, help="submits per mode")
    parser.add_argument("--kills", type=int, default=15, help="kills per mode and disk")
    parser.add_argument("--fsync-s", type=float, nargs="+", default=[0, 0.2, 1.5], help="extra seconds of fdatasync")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all results to this file")
    options = parser.parse_args()
    chosen = modes()
    _log("measuring the price of a submit")
    price = measure_price(chosen, options.submits)
    loss = []
    for fsync_s in options.fsync_s:
        for mode in chosen:
            _log(f"killing Redis: {mode.name}, fdatasync {fsync_s} s")
            loss.append(measure_loss(mode, fsync_s, options.kills, options.seed))
            _log(json.dumps(loss[-1]))
    print(_markdown(price, loss))
    if options.json:
        options.json.write_text(json.dumps({"price": price, "loss": loss}, indent=2) + "\n")


def _markdown(price: Sequence[Row], loss: Sequence[Row]) -> str:
    lines = ["| durability | Redis | submits | p50 | p95 |", "|---|---|---:|---:|---:|"]
    for row in price:
        times = f"{row['p50_ms']:,.2f} ms | {row['p95_ms']:,.2f} ms"
        lines.append(f"| {row['mode']} | {row['redis']} | {row['submits']} | {times} |")
    lines += ["", "| durability | Redis | fdatasync | kills | acknowledged | lost | 503 |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    for row in loss:
        counts = f"{row['kills']} | {row['acknowledged']:,} | {row['lost']:,} | {row['not_confirmed']:,}"
        lines.append(f"| {row['mode']} | {row['redis']} | +{row['fsync_s']:g} s | {counts} |")
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    lines += ["", f"{cores} CPU cores with load {load:.1f} at the end; {CLIENTS} clients in the second table."]
    return "\n".join(lines)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
