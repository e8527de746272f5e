"""The primary of a replicated Redis, which is killed so that a replica takes over. Measures when jobs are accepted."""

import time
from collections.abc import Callable

from tests.chaos.deployment import Process, ProcessHandle
from tests.chaos.observations import Figures, Observations
from tests.support.replicated_redis import ReplicatedRedis

MAX_FAILOVER_S = 10.0  # from the kill of the primary until every API server has acknowledged a job


class Primary(Process):
    """The primary of a replicated Redis. A killed one comes back as a replica after another was promoted.

    Attributes:
        wait_until_accepting: Set before a kill: returns when every API server has acknowledged a job.
        promotions_s: Seconds from each kill until a new primary accepted writes.
        recoveries_s: Seconds from each kill until every API server had acknowledged a job.
    """

    wait_until_accepting: Callable[[], None]

    def __init__(self, replicated: ReplicatedRedis) -> None:
        super().__init__("redis", "redis", start=_never, preloaded=None)
        self._replicated = replicated
        self._lost: int | None = None
        self.promotions_s: list[float] = []
        self.recoveries_s: list[float] = []

    def begin(self) -> None:
        """Start all servers, or wait for the promotion and start the killed one again."""
        if self._lost is None:
            self._replicated.start()
            return
        self._replicated.wait_for_failover(self._lost)
        self.promotions_s.append(time.monotonic() - self.started_at)
        self.wait_until_accepting()
        self.recoveries_s.append(time.monotonic() - self.started_at)
        self._replicated.restart_lost()

    def kill(self) -> None:
        self._lost = self._replicated.kill_primary()
        self.started_at = time.monotonic()

    def restart_if_dead(self) -> None:
        """Nothing: the Sentinels replace a dead primary."""


def _never() -> ProcessHandle:
    raise AssertionError("a replicated Redis starts its processes itself")


def check_failovers(observations: Observations, primary: Primary) -> Figures:
    """Check that jobs were accepted again in time after each failover."""
    for number, recovery_s in enumerate(primary.recoveries_s, 1):
        if recovery_s > MAX_FAILOVER_S:
            observations.add_violation(f"failover {number}: a job was acknowledged only after {recovery_s:.1f} s")
    slowest = [max(times, default=0) for times in (primary.promotions_s, primary.recoveries_s)]
    return {
        "failovers": len(primary.recoveries_s),
        "jobs that ran again because their end was lost": len(observations.repeated_ends),
        "new primary, maximum": f"{slowest[0]:.1f} s",
        "jobs acknowledged again by every API server, maximum": f"{slowest[1]:.1f} s of {MAX_FAILOVER_S:g} s",
    }
