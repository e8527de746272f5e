"""When a write counts as done: durability that the operator chooses.

Redis keeps its data in memory and writes to its append-only file after it has run a command. With `appendfsync
everysec` it flushes the file once a second. While a flush takes longer, Redis postpones even the write for up to two
seconds and responds nevertheless, so a Redis that is killed then loses acknowledged writes.
"""

import logging
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from redis import Redis
from redis.commands.core import Script
from redis.exceptions import NoPermissionError, NoScriptError, RedisError, ResponseError

from img2img.errors import NotConfirmed, Unavailable
from img2img.redis.keys import CONFIRMED_WRITE

# Longer than a flush takes with `appendfsync everysec`, in which Redis waits for the end of the second.
TIMEOUT_S = 5.0
# The configuration of a Redis without WAITAOF is read again after this time.
CHECK_S = 30.0

log = logging.getLogger(__name__)

Command = tuple[str | int, ...]


class Durability(StrEnum):
    """The state of a write in Redis when it is acknowledged.

    EVERYSEC: it is in the memory of Redis, and on disk a second later.
    ALWAYS: it is on the disk of Redis.
    REPLICA: it is also in the memory of at least one replica.
    """

    EVERYSEC = "everysec"
    ALWAYS = "always"
    REPLICA = "replica"


class UnsupportedDurability(Unavailable):
    """This Redis does not support the configured durability."""


class DurableWrites:
    """Runs scripts and waits until their writes are as durable as configured.

    Args:
        redis: With a socket timeout longer than `timeout_s`, unless the durability is EVERYSEC.
        timeout_s: How long to wait for the confirmation of a write.
    """

    def __init__(
        self, redis: Redis, durability: Durability = Durability.EVERYSEC, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._redis = redis
        self._durability = durability
        self._timeout_s = timeout_s
        self._wait: Command | None = None
        self._checked_at: float | None = None

    def run(self, script: Script, *, keys: Sequence[str] = (), args: Sequence[Any] = ()) -> Any:
        """Run a script and return its reply, in one round trip.

        Raises:
            NotConfirmed: The script has run, but its writes were not confirmed in time.
            UnsupportedDurability: This Redis cannot confirm writes. The script has not run.
        """
        if self._durability is Durability.EVERYSEC:
            return script(keys=keys, args=args)
        self._check_from_time_to_time()
        try:
            return self._execute(("EVALSHA", script.sha, len(keys), *keys, *args))
        except NoScriptError:
            self._redis.script_load(script.script)
            return self._execute(("EVALSHA", script.sha, len(keys), *keys, *args))

    def run_all(self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Any]:
        """Run a script several times in one round trip. Returns the replies, in order.

        Args:
            calls: Keys and arguments of each call.

        Raises:
            NotConfirmed, UnsupportedDurability: As for `run`.
        """
        if self._durability is not Durability.EVERYSEC:
            self._check_from_time_to_time()
        # The first call of a process loads it.
        self._redis.script_load(script.script)
        with self._redis.pipeline(transaction=False) as pipe:
            for keys, args in calls:
                pipe.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)  # type: ignore[no-untyped-call]
            replies = pipe.execute()
        self.confirm()
        return replies

    def confirm(self) -> None:
        """Wait for all earlier writes, of any client. Raises NotConfirmed or UnsupportedDurability."""
        if self._durability is not Durability.EVERYSEC:
            self._check_from_time_to_time()
            self._execute()

    def check(self) -> None:
        """Check that this Redis supports the durability. Raises UnsupportedDurability or RedisError."""
        timeout_ms = int(self._timeout_s * 1000)
        match self._durability:
            case Durability.ALWAYS:
                self._wait = ("WAITAOF", 1, 0, timeout_ms) if self._can_wait_for_disk() else None
            case Durability.REPLICA:
                self._wait = ("WAIT", 1, timeout_ms)
                if self._checked_at is None and not self._redis.wait(1, 1):
                    log.warning("no replica of Redis is connected: requests get 503 until one is")
        self._checked_at = time.monotonic()

    def _check_from_time_to_time(self) -> None:
        if self._checked_at is None or (self._wait is None and time.monotonic() - self._checked_at > CHECK_S):
            self.check()

    def _can_wait_for_disk(self) -> bool:
        """Return whether Redis has WAITAOF; if not, it must flush each write by itself."""
        try:
            self._redis.execute_command("WAITAOF", 1, 0, 1)  # type: ignore[no-untyped-call]
        except NoPermissionError:
            raise UnsupportedDurability("IMG2IMG_DURABILITY=always: the Redis user may not run WAITAOF.") from None
        except ResponseError as error:
            if "unknown command" not in str(error).lower():
                raise UnsupportedDurability(f"IMG2IMG_DURABILITY=always: {error}") from None
        else:
            return True
        need = "IMG2IMG_DURABILITY=always needs Redis 7.2 or later, or `appendonly yes` and `appendfsync always`"
        try:
            settings = self._redis.config_get("append*")
        except ResponseError:
            message = f"{need}; this Redis is older, and its user may not run CONFIG GET to find out."
            raise UnsupportedDurability(message) from None
        if (settings.get("appendonly"), settings.get("appendfsync")) != ("yes", "always"):
            raise UnsupportedDurability(f"{need}; this Redis is older and has neither.")
        return False

    def _execute(self, *commands: Command) -> Any:
        """Run commands, wait, and return the reply of the first."""
        with self._redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            # Redis waits for the last write of this connection, and a repeated command may write nothing.
            pipe.set(CONFIRMED_WRITE, 1)
            if self._wait:
                pipe.execute_command(*self._wait)  # type: ignore[no-untyped-call]
            replies = pipe.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, RedisError):
                raise reply
        if self._wait:
            confirmed = replies[-1][0] if isinstance(replies[-1], list) else replies[-1]
            if not confirmed:
                raise NotConfirmed(_not_confirmed(self._durability, self._timeout_s))
        return replies[0]


def _not_confirmed(durability: Durability, timeout_s: float) -> str:
    where = "on disk" if durability is Durability.ALWAYS else "on a replica"
    return (
        f"Redis did not confirm within {timeout_s:g} s that the change is {where}. It may take effect nevertheless: "
        "repeat the request. A submit with the same Idempotency-Key creates no second job."
    )
