"""Chooses the scheduler and the sigmas of requests that name none."""

import logging
from collections.abc import Sequence

from diffusers import SchedulerMixin

from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import COMBINED_SCHEDULERS, Scheduler, Sigmas

from ..errors import StartupError
from .scheduler_kinds import sigmas_of
from .schedulers import fallback_for, names_of

log = logging.getLogger(__name__)


def choose_defaults(
    config: ModelConfig, family: str, schedulers: Sequence[Scheduler], base: SchedulerMixin
) -> tuple[Scheduler, Sigmas | None]:
    """Return the given defaults, those of the model, or similar ones if requests cannot name its scheduler.

    Args:
        schedulers: those of the model, of the family `family`.
        base: scheduler of the model.

    Raises:
        StartupError: the configuration has a scheduler that the family does not have, or sigmas that it cannot have.
    """
    name, sigmas = names_of(base)
    if config.scheduler is not None or config.sigmas is not None:
        return _configured(config, family, schedulers, name)
    if name is not None and name in schedulers:
        return name, sigmas
    if Scheduler.MODEL in schedulers:
        return Scheduler.MODEL, None
    fallback = fallback_for(base, schedulers)
    log.warning(
        "the scheduler of the model, %s, is not one that requests can name; the default is %s",
        type(base).__name__,
        fallback,
    )
    return fallback, None


def _configured(
    config: ModelConfig, family: str, schedulers: Sequence[Scheduler], own: Scheduler | None
) -> tuple[Scheduler, Sigmas | None]:
    scheduler = config.scheduler or own
    if scheduler is None:
        raise StartupError("`sigmas` needs a `scheduler` here: requests cannot name that of the model")
    if scheduler not in schedulers:
        supported = ", ".join(schedulers)
        raise StartupError(f"`scheduler` {scheduler} is not for {family} models; choose one of: {supported}")
    plain, included = COMBINED_SCHEDULERS.get(scheduler, (scheduler, None))
    if config.sigmas is None or config.sigmas is included:
        return scheduler, None
    supported_sigmas = sigmas_of([plain]).get(plain, ())
    if (included and config.scheduler) or config.sigmas not in supported_sigmas:
        choices = f"choose one of: {', '.join(supported_sigmas)}" if supported_sigmas and not included else "remove it"
        raise StartupError(f"`sigmas` {config.sigmas} is not for the scheduler {scheduler}; {choices}")
    return plain, config.sigmas
