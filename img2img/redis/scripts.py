"""Loads the Lua scripts by which Redis does several steps as one."""

import re
from functools import cache
from importlib.resources import files

from redis import Redis
from redis.commands.core import Script

from img2img.redis import keys

_INCLUDE = re.compile(r"^-- include: (\w+)\n", re.MULTILINE)
_KEY = re.compile(r"\bkeys\.([A-Z][A-Z0-9_]*)\b")
_COMMENT = re.compile(r"^ *--.*\n", re.MULTILINE)


def register(redis: Redis, name: str) -> Script:
    """Return the script `lua/{name}.lua`, to be called with `keys` and `args`."""
    return redis.register_script(load(name))


@cache
def load(name: str) -> str:
    """Return the source of `lua/{name}.lua` with everything that it includes."""
    return compile_source(files("img2img.redis").joinpath("lua", f"{name}.lua").read_text())


def compile_source(source: str) -> str:
    """Prepend the included files, each once, and replace `keys.NAME` by the name of the key.

    A line `-- include: fair_queue` includes `lua/fair_queue.lua`, which may include others.
    """
    included: dict[str, str] = {}
    _collect(source, included)
    code = _COMMENT.sub("", "".join([*included.values(), source]))
    return _KEY.sub(lambda match: f"'{getattr(keys, match[1])}'", code)


def _collect(source: str, included: dict[str, str]) -> None:
    for name in _INCLUDE.findall(source):
        if name not in included:
            text = files("img2img.redis").joinpath("lua", f"{name}.lua").read_text()
            _collect(text, included)
            included[name] = text
