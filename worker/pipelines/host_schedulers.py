"""Stock schedulers that never wait for the device: their timesteps and sigmas stay in main memory.

Each is of a subclass of its stock class, which moves arguments and otherwise calls the methods of that class.
"""

import copy
from functools import cache, wraps
from typing import Any

import torch
from diffusers import SchedulerMixin

from .uploads import upload

# Schedulers whose `step` copies each sigma to the device by itself.
_COPY_SIGMAS = ("UniPCMultistepScheduler",)


def on_host(scheduler: SchedulerMixin) -> SchedulerMixin:
    """Let a scheduler keep its timesteps in main memory, and return it."""
    kind: Any = type(scheduler)
    scheduler.__class__ = _host_class(kind)
    return scheduler


def unused_copy(scheduler: SchedulerMixin) -> SchedulerMixin:
    """Return a copy of a scheduler that was never used, for one job. Tensors are shared: schedulers replace them."""
    made = copy.copy(scheduler)
    for name, value in vars(made).items():
        if isinstance(value, list):
            setattr(made, name, list(value))
    return made


@cache
def _host_class(kind: type[Any]) -> type[Any]:
    methods = {"__module__": kind.__module__, "set_timesteps": _set_timesteps(kind)}
    for name in ("add_noise", "scale_noise"):
        if hasattr(kind, name):
            methods[name] = _add_noise(getattr(kind, name), is_flow=name == "scale_noise")
    if kind.__name__ in _COPY_SIGMAS:
        methods["step"] = _step_with_sigmas_on_device(kind.step)
    return type(kind.__name__, (kind,), methods)


def _set_timesteps(kind: type[Any]) -> Any:
    stock = kind.set_timesteps

    # Pipelines look at the parameters of this method.
    @wraps(stock)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = "cpu"
        # The device is the second parameter.
        return stock(self, *args[:1], *("cpu" for _ in args[1:2]), *args[2:], **kwargs)

    return set_timesteps


def _add_noise(stock: Any, *, is_flow: bool) -> Any:
    """Return a method that asks the stock method for the two factors only, and applies them on the device.

    Args:
        is_flow: whether the parameters of the method are (sample, timestep, noise) and not (sample, noise, timesteps).
    """

    @wraps(stock)
    def add_noise(self: Any, samples: torch.Tensor, second: Any, third: Any) -> torch.Tensor:
        timesteps, noise = (second, third) if is_flow else (third, second)

        def call(samples: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
            mixed: torch.Tensor = stock(self, samples, *((timesteps, noise) if is_flow else (noise, timesteps)))
            return mixed

        if samples.device.type == "cpu" or timesteps.device.type != "cpu" or timesteps.numel() > 1:
            return call(samples, noise)
        one = torch.ones([1] * samples.dim(), dtype=samples.dtype)
        of_samples, of_noise = call(one, 0 * one).item(), call(0 * one, one).item()
        mixed: torch.Tensor = of_samples * samples + of_noise * noise
        return mixed

    return add_noise


def _step_with_sigmas_on_device(stock: Any) -> Any:
    @wraps(stock)
    def step(self: Any, model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        on_host = self.sigmas
        known = self.__dict__.get("_device_sigmas")
        if known is None or known[0] is not on_host:
            known = self._device_sigmas = (on_host, upload(on_host, model_output.device))
        self.sigmas = known[1]
        try:
            return stock(self, model_output, *args, **kwargs)
        finally:
            self.sigmas = on_host

    return step
