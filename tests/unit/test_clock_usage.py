"""Which code may read the clock of its host. All else goes by the clock of Redis or by the monotonic clock."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "img2img/redis/clock.py": "compares the clocks",
    "app/cli/keys.py": "dates that the operator enters and reads",
    "app/compat/openai/answers.py": "`created_at` of a response that nothing compares",
    "app/webhooks/dispatcher.py": "receivers compare the time of a signature with their own clock",
    "img2img/durable_files.py": "compares file times of the same host",
    "app/webhooks/http_sender.py": "a date in Retry-After is the receiver's",
}


def clock_reads(source: str) -> int:
    """Return how often a module reads the wall clock of its host."""
    calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    read = {"time.time", "datetime.now", "datetime.utcnow", "datetime.datetime.now", "current_timestamp", "time_ns"}
    return sum(ast.unparse(call) in read for call in calls)


def test_only_allowed_modules_read_the_clock_of_their_host() -> None:
    """Others use img2img.redis.clock or time.monotonic."""
    files = [path for folder in ("img2img", "app", "worker") for path in (ROOT / folder).rglob("*.py")]
    reading = {path.relative_to(ROOT).as_posix() for path in files if clock_reads(path.read_text())}
    assert reading == ALLOWED.keys()
