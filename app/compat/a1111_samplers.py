"""The web UI's names of samplers and schedules."""

import re

from img2img.domain.infotext import WEB_UI_NAMES
from img2img.domain.parameters import Scheduler
from img2img.errors import ParameterError

# By sampler and schedule. Also names of web UIs before 1.9, and samplers whose automatic schedule is another one there.
SAMPLERS: dict[tuple[str, str], Scheduler] = {
    **{names: scheduler for scheduler, names in WEB_UI_NAMES.items()},
    ("DPM++ 2M", "Automatic"): Scheduler.DPMPP_2M_KARRAS,
    ("DPM++ 2M Karras", "Automatic"): Scheduler.DPMPP_2M_KARRAS,
    # Exponential in the web UI, which no scheduler here is.
    ("DPM++ 2M SDE", "Automatic"): Scheduler.DPMPP_2M_SDE,
}
SCHEDULES = tuple(dict.fromkeys(schedule for _, schedule in SAMPLERS))
# Spellings of the web UI's samplers in lower case, such as `k_euler_ancestral` and `dpm++_2m`.
ALIASES = {"ancestral": "a", "dpmpp": "dpm++", "k": "", "ka": "karras"}


def find_scheduler(sampler: str | None, schedule: str | None) -> Scheduler | None:
    """Return the scheduler for a sampler and a schedule; None if none is named. Raises ParameterError."""
    if not sampler:
        return None
    name, kind = _normalized(sampler), _normalized(schedule or "Automatic")
    for suffix in (" karras", " exponential"):
        if name.endswith(suffix) and kind in ("automatic", suffix.strip()):
            name, kind = name.removesuffix(suffix), suffix.strip()
    found = _BY_NAME.get((name, kind))
    if found is None:
        known = ", ".join(f"{name} ({kind})" for name, kind in SAMPLERS)
        message = f"With its schedule, input should be one of: {known}"
        raise ParameterError("sampler_name", message, f"{sampler} ({schedule or 'Automatic'})")
    return found


def _normalized(name: str) -> str:
    words = re.split(r"[\s_]+", name.strip().lower())
    return " ".join(filter(None, (ALIASES.get(word, word) for word in words)))


_BY_NAME: dict[tuple[str, str], Scheduler] = {}
for _scheduler in Scheduler:
    _BY_NAME[_normalized(_scheduler.value), "automatic"] = _scheduler
for (_name, _schedule), _scheduler in SAMPLERS.items():
    _BY_NAME[_normalized(_name), _normalized(_schedule)] = _scheduler
    # The uniform schedule is the automatic one of samplers without another.
    if _schedule == "Automatic":
        _BY_NAME.setdefault((_normalized(_name), "uniform"), _scheduler)
