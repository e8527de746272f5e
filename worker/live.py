"""`python -m worker.live`: whether a worker of this host has loaded its models and is heard of, by its exit code."""

import socket
import sys

from redis import Redis
from redis.exceptions import RedisError

from app.contract.models import ModelRegistry
from worker.settings import WorkerSettings


def main() -> int:
    """Exit code 0 if there is one, else 1."""
    host = f"{socket.gethostname()}-"
    with Redis.from_url(WorkerSettings().resolved_redis_url, socket_timeout=3, socket_connect_timeout=3) as redis:
        try:
            live = ModelRegistry(redis).live()
        except RedisError as error:
            sys.stderr.write(f"{error}\n")
            return 1
    return 0 if any(name.startswith(host) for names in live.values() for name in names) else 1


if __name__ == "__main__":
    sys.exit(main())
