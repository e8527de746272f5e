"""Stock schedulers that never wait for the device: their timesteps and sigmas stay in main memory.

Each is of a subclass of its stock class, which moves arguments and otherwise calls the methods of that class.
"""

import copy
import inspect
from functools import cache, wraps
from typing import Any

import torch
from cachetools import LRUCache
from diffusers import SchedulerMixin

from ..engine.deferred import Deferred, tensors_of
from .job_noise import JobGenerator
from .step_tables import TableRun, probe
from .uploads import upload

# Schedulers whose `step` copies each sigma to the device by itself.
_COPY_SIGMAS = ("UniPCMultistepScheduler",)
# Tables of a scheduler: combinations of steps and strength.
_MAX_TABLES = 500


def on_host(scheduler: SchedulerMixin) -> SchedulerMixin:
    """Let a scheduler keep its timesteps in main memory, and return it."""
    kind: Any = type(scheduler)
    scheduler.__class__ = _host_class(kind)
    return scheduler


def with_tables(scheduler: SchedulerMixin) -> SchedulerMixin:
    """Let a scheduler of `on_host`, and its copies, make steps by tables. They share the tables. Returns it."""
    scheduler.tables = LRUCache(_MAX_TABLES)
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
    step = _step_with_sigmas_on_device(kind.step) if kind.__name__ in _COPY_SIGMAS else kind.step
    methods["step"] = _step_by_table(kind, step)
    if hasattr(kind, "scale_model_input"):
        methods["scale_model_input"] = _scale_by_table(kind.scale_model_input)
    for name in ("set_timesteps", "step"):
        # Each job asks for it, and finding it out takes a tenth of a millisecond.
        methods[name].__signature__ = inspect.signature(getattr(kind, name))
    return type(kind.__name__, (kind,), {**methods, "tables": None})


def _set_timesteps(kind: type[Any]) -> Any:
    stock = kind.set_timesteps

    # Pipelines look at the parameters of this method.
    @wraps(stock)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = "cpu"
        self.__dict__.pop("_unused", None)
        self.__dict__.pop("_run", None)
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


def _scale_by_table(stock: Any) -> Any:
    @wraps(stock)
    def scale_model_input(self: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        run = self.__dict__.get("_run")
        if run is not None:
            return sample if run.scale == 1 else sample * run.scale
        [sample] = tensors_of([sample])
        if self.tables is not None and "_unused" not in self.__dict__:
            # The arguments of `step`, on which tables depend, are not known yet.
            self._unused = unused_copy(self)
        return stock(self, sample, *args, **kwargs)

    return scale_model_input


def _step_by_table(kind: type[Any], stock: Any) -> Any:
    @wraps(kind.step)
    def step(self: Any, model_output: Any, timestep: Any, sample: Any, **kwargs: Any) -> Any:
        if self.tables is None:
            return stock(self, model_output, timestep, sample, **kwargs)
        if "_run" not in self.__dict__:
            self._run = _new_run(self, kind, timestep, kwargs)
        if self._run is None or kwargs.get("return_dict", True):
            model_output, sample = tensors_of([model_output, sample])
            return stock(self, model_output, timestep, sample, **kwargs)

        def draw(dtype: torch.dtype) -> torch.Tensor:
            return upload(kwargs["generator"].draw(sample.shape, dtype), sample.device)

        following = self._run.step(model_output, sample, draw)
        # A pipeline that works with tensors gets one.
        return (following if isinstance(model_output, Deferred) else following.tensor(),)

    return step


def _new_run(scheduler: Any, kind: type[Any], timestep: Any, arguments: dict[str, Any]) -> TableRun | None:
    """Return the steps of a job from its first one on, or None if they cannot be a table."""
    unused = scheduler.__dict__.pop("_unused", None) or unused_copy(scheduler)
    timesteps = unused.timesteps
    start = getattr(unused, "begin_index", None)
    if start is None:
        [*found] = (timesteps == timestep).nonzero().flatten().tolist()
        # The scheduler itself does not know where it starts.
        if len(found) != 1:
            return None
        start = found[0]
    generator, others = arguments.get("generator"), {k: v for k, v in arguments.items() if k != "generator"}
    if not isinstance(generator, JobGenerator | None):
        return None
    sigmas = getattr(unused, "sigmas", None)
    key = (
        unused.num_inference_steps,
        tuple(timesteps[start:].tolist()),
        None if sigmas is None else tuple(sigmas.tolist()),
        tuple(sorted(others.items())),
    )
    if key not in scheduler.tables:
        unused.tables = None
        scheduler.tables[key] = probe(unused, kind, timesteps[start:], arguments)
    steps = scheduler.tables[key]
    return TableRun(steps) if steps else None


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
