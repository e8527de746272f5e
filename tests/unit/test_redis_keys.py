"""The table of Redis keys, and the modules that may use Redis keys and RQ."""

import re
from pathlib import Path

from img2img.redis import keys

ROOT = Path(__file__).parents[2]
TABLE = {name: key for name, key in vars(keys).items() if isinstance(key, keys.Key)}


def test_key_pattern_matches_every_name_of_the_template() -> None:
    assert keys.JOB.pattern == "i2i:job:*"
    assert keys.FAIR_QUEUE_JOBS.pattern == "i2i:queue:*:*:*"
    assert keys.JOBS.pattern == keys.JOBS == "i2i:jobs"


def test_keys_are_unique() -> None:
    assert len(set(TABLE.values())) == len(TABLE)


def sources() -> list[Path]:
    """The modules and scripts of the distribution, except for the table itself."""
    folders = [ROOT / folder for folder in ("app", "worker", "img2img")]
    paths = [path for folder in folders for suffix in ("py", "lua") for path in folder.rglob(f"*.{suffix}")]
    return [path for path in paths if path != ROOT / "img2img" / "redis" / "keys.py"]


def test_only_the_table_spells_key_names() -> None:
    spelled = re.compile(r"""["'`]i2i:""")
    assert [path for path in sources() if spelled.search(path.read_text())] == []


def test_every_key_is_used() -> None:
    used = "\n".join(path.read_text() for path in sources())
    assert [name for name in TABLE if not re.search(rf"\b{name}\b", used)] == []


def test_only_the_adapter_and_the_worker_import_rq() -> None:
    imports = re.compile(r"^ *(from rq[. ]|import rq\b)", re.MULTILINE)
    importing = {path.relative_to(ROOT).as_posix() for path in sources() if imports.search(path.read_text())}
    assert {path for path in importing if not path.startswith("worker/queue/")} == {"img2img/redis/rq_adapter.py"}
