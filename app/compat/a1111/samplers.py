"""Samplers and schedules by the names of the web UI, and of ComfyUI."""

import re

from img2img.domain.model_card import ModelCard
from img2img.domain.parameters import COMBINED_SCHEDULERS, Scheduler, Sigmas
from img2img.domain.sampler_names import (
    AUTOMATIC,
    AUTOMATIC_SIGMAS,
    COMFYUI_SAMPLERS,
    UNIFORM,
    WEB_UI_SAMPLERS,
    WEB_UI_SCHEDULES,
)
from img2img.errors import ParameterError

# Spellings of samplers in lower case, such as `k_euler_ancestral` and `dpm++_2m`.
ALIASES = {"ancestral": "a", "dpmpp": "dpm++", "k": "", "ka": "karras"}
# Schedulers of flow matching for the samplers of the same name.
FLOW = {Scheduler.EULER: Scheduler.FLOW_EULER, Scheduler.HEUN: Scheduler.FLOW_HEUN}
# Equal steps: what a scheduler has that does not take them by name.
EQUAL_STEPS = (Sigmas.NORMAL, Sigmas.SIMPLE, Sigmas.SGM_UNIFORM, Sigmas.DDIM_UNIFORM)

Names = tuple[Scheduler | None, Sigmas | None]


def find_scheduler(sampler: str | None, schedule: str | None, card: ModelCard) -> Names:
    """Return the scheduler and the sigmas that a sampler and a schedule name, each None for the default.

    Raises:
        ParameterError: There is no such sampler or schedule.
    """
    kind, suffix = _normalized(schedule or AUTOMATIC), None
    if not sampler:
        return None, None if kind in _OWN else _sigmas(schedule, kind)
    name = _normalized(sampler)
    if name not in _SCHEDULERS:
        name, _, suffix = name.rpartition(" ")
    if name not in _SCHEDULERS or (suffix is not None and suffix not in _SIGMAS):
        known = [*WEB_UI_SAMPLERS.values(), *(other for other in Scheduler if other not in WEB_UI_SAMPLERS)]
        message = f"Input should be one of: {', '.join(known)}"
        raise ParameterError("sampler_name", message, got=sampler)
    scheduler = _SCHEDULERS[name]
    if suffix is not None:
        if kind not in (*_OWN, suffix):
            message = f"The sampler {sampler} names another schedule; leave one of the two out"
            raise ParameterError("scheduler", message, got=schedule)
        sigmas: Sigmas | None = _SIGMAS[suffix]
    elif kind == _normalized(AUTOMATIC):
        sigmas = AUTOMATIC_SIGMAS.get(scheduler)
    else:
        sigmas = None if kind == _normalized(UNIFORM) else _sigmas(schedule, kind)
    return _for_model(scheduler, sigmas, card)


def _for_model(scheduler: Scheduler, sigmas: Sigmas | None, card: ModelCard) -> Names:
    """Return the names for the kind of the model, and leave out sigmas that are what the scheduler has."""
    flow = FLOW.get(scheduler)
    if flow in card.schedulers and scheduler not in card.schedulers:
        scheduler = flow
    if sigmas in EQUAL_STEPS and sigmas not in card.scheduler_sigmas.get(scheduler, ()):
        return scheduler, None
    return scheduler, sigmas


def _sigmas(schedule: str | None, kind: str) -> Sigmas:
    if kind not in _SIGMAS:
        known = ", ".join((AUTOMATIC, UNIFORM, *WEB_UI_SCHEDULES.values()))
        raise ParameterError("scheduler", f"Input should be one of: {known}", got=schedule)
    return _SIGMAS[kind]


def _normalized(name: str) -> str:
    words = re.split(r"[\s_]+", name.strip().lower())
    return " ".join(filter(None, (ALIASES.get(word, word) for word in words)))


_SCHEDULERS = {
    _normalized(name): scheduler
    for names in (COMFYUI_SAMPLERS, WEB_UI_SAMPLERS, {known: known.value for known in Scheduler})
    for scheduler, name in names.items()
    # Their names are those of a scheduler and of its sigmas.
    if scheduler not in COMBINED_SCHEDULERS
}
_SIGMAS = {_normalized(name): sigmas for sigmas in Sigmas for name in (sigmas.value, WEB_UI_SCHEDULES[sigmas])}
_OWN = (_normalized(AUTOMATIC), _normalized(UNIFORM))
