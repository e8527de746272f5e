"""The diffusers class and settings of every scheduler that a request can name, and the sigmas that each can have."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import diffusers
from diffusers import SchedulerMixin

from img2img.domain.parameters import COMBINED_SCHEDULERS, Scheduler, Sigmas

from . import midway_schedulers

Settings = Mapping[str, Any]

# Settings on top of the config of the model's scheduler (betas, prediction type, timestep spacing). Settings that the
# scheduler of a model may have and that would change another scheduler are reset here.
PLAIN_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_ORDER_2 = {"solver_order": 2, "solver_type": "midpoint", "lower_order_final": True, **PLAIN_SIGMAS}
_DPMPP = {**_ORDER_2, "algorithm_type": "dpmsolver++"}
_SDE = {**_ORDER_2, "algorithm_type": "sde-dpmsolver++"}

SCHEDULERS: Mapping[Scheduler, tuple[str, Settings]] = {
    Scheduler.DDIM: ("DDIMScheduler", {}),
    Scheduler.DDPM: ("DDPMScheduler", {"variance_type": "fixed_small"}),
    Scheduler.PNDM: ("PNDMScheduler", {"skip_prk_steps": True}),
    Scheduler.LMS: ("LMSDiscreteScheduler", PLAIN_SIGMAS),
    Scheduler.EULER: ("EulerDiscreteScheduler", PLAIN_SIGMAS),
    Scheduler.EULER_A: ("EulerAncestralDiscreteScheduler", {}),
    Scheduler.HEUN: ("HeunDiscreteScheduler", PLAIN_SIGMAS),
    Scheduler.DPMPP_2M: ("DPMSolverMultistepScheduler", _DPMPP),
    Scheduler.DPMPP_2M_KARRAS: ("DPMSolverMultistepScheduler", {**_DPMPP, "use_karras_sigmas": True}),
    Scheduler.DPMPP_2M_SDE: ("DPMSolverMultistepScheduler", _SDE),
    Scheduler.DPMPP_2M_SDE_HEUN: ("DPMSolverMultistepScheduler", {**_SDE, "solver_type": "heun"}),
    Scheduler.DPMPP_3M_SDE: ("DPMSolverMultistepScheduler", {**_SDE, "solver_order": 3}),
    Scheduler.DPMPP_SDE: ("DPMSolverSDEScheduler", PLAIN_SIGMAS),
    Scheduler.DPMPP_2S: ("DPMSolverSinglestepScheduler", _DPMPP),
    # The nearest to the ancestral sampler: a stochastic solver of the same order.
    Scheduler.DPMPP_2S_A: ("DPMSolverSinglestepScheduler", _SDE),
    Scheduler.DPM2: ("KDPM2DiscreteScheduler", PLAIN_SIGMAS),
    Scheduler.DPM2_A: ("KDPM2AncestralDiscreteScheduler", PLAIN_SIGMAS),
    Scheduler.UNIPC: ("UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2", **PLAIN_SIGMAS}),
    Scheduler.DEIS: (
        "DEISMultistepScheduler",
        {"algorithm_type": "deis", "solver_order": 2, "solver_type": "logrho", **PLAIN_SIGMAS},
    ),
    Scheduler.LCM: ("LCMScheduler", {}),
    Scheduler.TCD: ("TCDScheduler", {}),
    # The flow matching schedulers that image-to-image pipelines can start midway and that draw no noise themselves.
    Scheduler.FLOW_EULER: ("FlowMatchEulerDiscreteScheduler", PLAIN_SIGMAS),
    Scheduler.FLOW_EULER_BETA: ("FlowMatchEulerDiscreteScheduler", {**PLAIN_SIGMAS, "use_beta_sigmas": True}),
    Scheduler.FLOW_HEUN: ("FlowMatchHeunDiscreteScheduler", {}),
}
# Classes whose settings are served as they are: image-to-image can start them midway, they draw no noise, and `speed`
# goes with them.
OWN = (
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
)
# Settings in which two schedulers of one class differ, with their defaults.
DISTINCTIVE: Settings = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}

SIGMAS: Mapping[Sigmas, Settings] = {
    Sigmas.KARRAS: {"use_karras_sigmas": True},
    Sigmas.EXPONENTIAL: {"use_exponential_sigmas": True},
    Sigmas.BETA: {"use_beta_sigmas": True},
    Sigmas.NORMAL: {"timestep_spacing": "linspace"},
    Sigmas.SIMPLE: {"timestep_spacing": "trailing"},
    Sigmas.SGM_UNIFORM: {"timestep_spacing": "trailing"},
    Sigmas.DDIM_UNIFORM: {"timestep_spacing": "leading"},
}
# They have `timestep_spacing`, but take their timesteps from the schedule that the model was distilled with.
_DISTILLED = (Scheduler.LCM, Scheduler.TCD)


def scheduler_class(name: Scheduler) -> type[SchedulerMixin]:
    """Return the class of a scheduler: that of diffusers, or a subclass that can start midway."""
    class_name = SCHEDULERS[name][0]
    scheduler: type[SchedulerMixin] = getattr(midway_schedulers, class_name, None) or getattr(diffusers, class_name)
    return scheduler


def sigmas_of(schedulers: Iterable[Scheduler]) -> dict[str, tuple[Sigmas, ...]]:
    """Return the sigmas that each scheduler can have: those whose setting its diffusers class has."""
    supported = {}
    for name in schedulers:
        if name not in SCHEDULERS or name in COMBINED_SCHEDULERS or name in _DISTILLED:
            continue
        takes = inspect.signature(scheduler_class(name).__init__).parameters
        values = tuple(sigmas for sigmas, settings in SIGMAS.items() if settings.keys() <= takes.keys())
        if values:
            supported[name.value] = values
    return supported
