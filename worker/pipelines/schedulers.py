"""The diffusers class and settings of every scheduler that a request can name."""

from collections.abc import Sequence
from typing import Any

import diffusers
from diffusers import SchedulerMixin

from img2img.domain.parameters import FLOW_SCHEDULERS, Scheduler

from ..errors import StartupError
from . import midway_schedulers

# Settings on top of the config of the model's scheduler (betas, prediction type, timestep spacing). Settings that the
# scheduler of a model may have and that would change another scheduler are reset here.
_PLAIN_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_DPMPP = {"solver_order": 2, "solver_type": "midpoint", "lower_order_final": True, **_PLAIN_SIGMAS}

_TABLE: dict[Scheduler, tuple[str, dict[str, Any]]] = {
    Scheduler.DDIM: ("DDIMScheduler", {}),
    Scheduler.DDPM: ("DDPMScheduler", {"variance_type": "fixed_small"}),
    Scheduler.PNDM: ("PNDMScheduler", {"skip_prk_steps": True}),
    Scheduler.LMS: ("LMSDiscreteScheduler", _PLAIN_SIGMAS),
    Scheduler.EULER: ("EulerDiscreteScheduler", _PLAIN_SIGMAS),
    Scheduler.EULER_A: ("EulerAncestralDiscreteScheduler", {}),
    Scheduler.HEUN: ("HeunDiscreteScheduler", _PLAIN_SIGMAS),
    Scheduler.DPMPP_2M: ("DPMSolverMultistepScheduler", {**_DPMPP, "algorithm_type": "dpmsolver++"}),
    Scheduler.DPMPP_2M_KARRAS: (
        "DPMSolverMultistepScheduler",
        {**_DPMPP, "algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
    Scheduler.DPMPP_2M_SDE: ("DPMSolverMultistepScheduler", {**_DPMPP, "algorithm_type": "sde-dpmsolver++"}),
    Scheduler.UNIPC: ("UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2", **_PLAIN_SIGMAS}),
    Scheduler.DEIS: (
        "DEISMultistepScheduler",
        {"algorithm_type": "deis", "solver_order": 2, "solver_type": "logrho", **_PLAIN_SIGMAS},
    ),
    Scheduler.LCM: ("LCMScheduler", {}),
    Scheduler.TCD: ("TCDScheduler", {}),
    # The flow matching schedulers that image-to-image pipelines can start midway and that draw no noise themselves.
    Scheduler.FLOW_EULER: ("FlowMatchEulerDiscreteScheduler", _PLAIN_SIGMAS),
    Scheduler.FLOW_EULER_BETA: ("FlowMatchEulerDiscreteScheduler", {**_PLAIN_SIGMAS, "use_beta_sigmas": True}),
    Scheduler.FLOW_HEUN: ("FlowMatchHeunDiscreteScheduler", {}),
}
# Classes whose settings are served as they are: image-to-image can start them midway, they draw no noise, and `speed`
# goes with them.
_OWN = (
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
)
# Settings in which two schedulers of one class differ.
_DISTINCTIVE = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "algorithm_type")


def scheduler_class(name: Scheduler) -> type[SchedulerMixin]:
    """Return the class of a scheduler: that of diffusers, or a subclass that can start midway."""
    class_name = _TABLE[name][0]
    scheduler: type[SchedulerMixin] = getattr(midway_schedulers, class_name, None) or getattr(diffusers, class_name)
    return scheduler


def make_scheduler(name: Scheduler, base: SchedulerMixin) -> SchedulerMixin:
    """Create a scheduler.

    Args:
        base: scheduler of the model, whose config is the base of the new one.
    """
    if name is Scheduler.MODEL:
        own: SchedulerMixin = type(base).from_config(base.config)
        return own
    _, settings = _TABLE[name]
    if name not in FLOW_SCHEDULERS:
        # The class default clips samples to [-1, 1]. That is for models of pixels; latents exceed that range.
        settings = {"clip_sample": base.config.get("clip_sample", False), **settings}
    scheduler: SchedulerMixin = scheduler_class(name).from_config(base.config, **settings)
    return scheduler


def name_of(base: SchedulerMixin) -> Scheduler | None:
    """Return the name of a scheduler, or None if requests cannot name it."""
    config = {**_PLAIN_SIGMAS, "algorithm_type": "dpmsolver++", **base.config}
    for name, (class_name, settings) in _TABLE.items():
        distinctive = {key: settings[key] for key in _DISTINCTIVE if key in settings}
        if class_name == type(base).__name__ and all(config[key] == value for key, value in distinctive.items()):
            return name
    return None


def has_own_schedule(base: SchedulerMixin) -> bool:
    """Return whether `Scheduler.MODEL` is offered for a model with this scheduler."""
    is_noisy = str(base.config.get("algorithm_type")).startswith("sde-")
    return name_of(base) is None and type(base).__name__ in _OWN and not is_noisy


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
