"""Makes the scheduler of a job, and finds the names of the scheduler of a model."""

from collections.abc import Sequence

from diffusers import SchedulerMixin

from img2img.domain.parameters import FLOW_SCHEDULERS, Scheduler, Sigmas

from ..errors import StartupError
from .scheduler_kinds import DISTINCTIVE, OWN, PLAIN_SIGMAS, SCHEDULERS, SIGMAS, scheduler_class


def make_scheduler(name: Scheduler, base: SchedulerMixin, sigmas: Sigmas | None = None) -> SchedulerMixin:
    """Create a scheduler.

    Args:
        base: scheduler of the model, whose config is the base of the new one.
        sigmas: noise levels, of those in `sigmas_of`; None: those of the scheduler itself.
    """
    if name is Scheduler.MODEL:
        own: SchedulerMixin = type(base).from_config(base.config)
        return own
    _, settings = SCHEDULERS[name]
    if sigmas is not None:
        settings = {**settings, **SIGMAS[sigmas]}
    if name not in FLOW_SCHEDULERS:
        # The class default clips samples to [-1, 1]. That is for models of pixels; latents exceed that range.
        settings = {"clip_sample": base.config.get("clip_sample", False), **settings}
    scheduler: SchedulerMixin = scheduler_class(name).from_config(base.config, **settings)
    return scheduler


def seed_noise(scheduler: SchedulerMixin, seed: int) -> None:
    """Seed the noise of a scheduler that does not draw it from the generator of its pipeline."""
    if hasattr(scheduler, "noise_sampler_seed"):
        scheduler.noise_sampler_seed = seed


def names_of(base: SchedulerMixin) -> tuple[Scheduler | None, Sigmas | None]:
    """Return the name of a scheduler and of its sigmas, each None if requests cannot name it."""
    config = {**PLAIN_SIGMAS, **DISTINCTIVE, **base.config}
    candidates = {
        name: sum(config[key] == value for key, value in settings.items() if key in (*PLAIN_SIGMAS, *DISTINCTIVE))
        for name, (class_name, settings) in SCHEDULERS.items()
        if class_name == type(base).__name__
        and settings.get("algorithm_type", config["algorithm_type"]) == config["algorithm_type"]
    }
    if not candidates:
        return None, None
    name = max(candidates, key=lambda candidate: candidates[candidate])
    _, settings = SCHEDULERS[name]
    flags = [flag for flag in PLAIN_SIGMAS if config[flag] and not settings.get(flag)]
    return name, next((sigmas for sigmas, given in SIGMAS.items() if flags and flags[0] in given), None)


def has_own_schedule(base: SchedulerMixin) -> bool:
    """Return whether `Scheduler.MODEL` is offered for a model with this scheduler."""
    is_noisy = str(base.config.get("algorithm_type")).startswith("sde-")
    return names_of(base)[0] is None and type(base).__name__ in OWN and not is_noisy


def check_scheduler(base: SchedulerMixin) -> None:
    """Refuse the schedulers of EDM models (Karras et al., 2022): no scheduler that requests can name scales the inputs
    and outputs of the denoiser as they do.

    Raises:
        StartupError: if the scheduler is one of them.
    """
    class_name = type(base).__name__
    if class_name.startswith("EDM") or "sigma_data" in base.config:
        raise StartupError(f"its scheduler is {class_name}: models with EDM preconditioning are not supported")


def fallback_for(base: SchedulerMixin, supported: Sequence[Scheduler]) -> Scheduler:
    """Return the default for a model whose scheduler requests cannot name, with its noise schedule if possible."""
    karras = base.config.get("use_karras_sigmas") or False
    beta = base.config.get("use_beta_sigmas") or False
    preferred = (Scheduler.DPMPP_2M_KARRAS,) if karras else (Scheduler.FLOW_EULER_BETA,) if beta else ()
    return next((name for name in (*preferred, Scheduler.DPMPP_2M) if name in supported), supported[0])


def with_prediction_type(base: SchedulerMixin, prediction_type: str) -> SchedulerMixin:
    """Return a scheduler with another prediction type (`epsilon` or `v_prediction`).

    Raises:
        StartupError: if the scheduler is of flow matching.
    """
    if "prediction_type" not in base.config:
        raise StartupError(f"`prediction_type` has no meaning for {type(base).__name__}; remove it")
    changed: SchedulerMixin = type(base).from_config(base.config, prediction_type=prediction_type)
    return changed
