"""The schedulers that a request may name, as diffusers classes and the settings that make them that scheduler."""

from typing import Any

import diffusers
from diffusers import SchedulerMixin

from img2img.domain.parameters import FLOW_SCHEDULERS, Scheduler

# A model's own config is the base (betas, prediction type, spacing); these settings go on top. Those that would
# otherwise leak from one scheduler's config into another's are named here too.
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
    # Those of diffusers' that image-to-image pipelines can start midway, and that draw no noise but the job's own.
    Scheduler.FLOW_EULER: ("FlowMatchEulerDiscreteScheduler", _PLAIN_SIGMAS),
    Scheduler.FLOW_EULER_BETA: ("FlowMatchEulerDiscreteScheduler", {**_PLAIN_SIGMAS, "use_beta_sigmas": True}),
    Scheduler.FLOW_HEUN: ("FlowMatchHeunDiscreteScheduler", {}),
}
_TELLING = ("use_karras_sigmas", "use_beta_sigmas", "algorithm_type")  # what tells two of one class apart


def scheduler_class(name: Scheduler) -> type[SchedulerMixin]:
    """Return the diffusers class of the scheduler."""
    scheduler: type[SchedulerMixin] = getattr(diffusers, _TABLE[name][0])
    return scheduler


def make_scheduler(name: Scheduler, base: SchedulerMixin) -> SchedulerMixin:
    """A fresh scheduler of that name for the model whose own scheduler is `base`."""
    _, settings = _TABLE[name]
    if name not in FLOW_SCHEDULERS:
        # Latents are not confined to [-1, 1]; the class default of clipping is meant for models that work on pixels.
        settings = {"clip_sample": base.config.get("clip_sample", False), **settings}
    scheduler: SchedulerMixin = scheduler_class(name).from_config(base.config, **settings)
    return scheduler


def name_of(base: SchedulerMixin) -> Scheduler | None:
    """The name of a model's own scheduler, None for one that requests cannot name."""
    wanted = {"use_karras_sigmas": False, "use_beta_sigmas": False, "algorithm_type": "dpmsolver++", **base.config}
    for name, (class_name, settings) in _TABLE.items():
        told_apart = {key: settings[key] for key in _TELLING if key in settings}
        if class_name == type(base).__name__ and all(wanted[key] == value for key, value in told_apart.items()):
            return name
    return None
