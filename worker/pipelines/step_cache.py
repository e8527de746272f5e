"""Step caches: jobs with `speed` predict some outputs of their denoiser from earlier ones, and do not call it then.

A cache sees the inputs and outputs of the denoiser of one job, as EasyCache (Zhou et al., 2025) does, and no other job
uses it. A job that skips a call is not suspended at the gate and leaves its rows to other jobs.

With sigma as noise level, a sampler integrates dz = p dsigma. For flow matching, z are the latents, and p is the output
of the denoiser; for diffusion, z are the latents divided by the scale of their signal, and p is the noise in them. So
an error of p at one call changes the result by about that error times the change of sigma. This is the unit of
tolerances: standard deviations of latents, whose own is about 1.

- A prediction goes half as far as the line through the last two calls that were made, over the number of the step: p of
  a real denoiser is less regular than its trend. Schedulers with two calls for each step make the second of one step
  and the first of the next at the same sigma. There the image that the denoiser sees, z - sigma p, changes least, so
  that it is predicted instead of p.
- A call that is made shows the error that its prediction would have had. The next predictions are assumed to have that
  error for each call since the last one made, or more if the errors are growing, and calls are skipped while the
  expected change of the result is small.
- A call that is made also shows, by interpolation, the errors of the predictions since the one before. Half of their
  effect is compensated: all of it is too much for schedulers that combine several outputs in each step.
- The calls of the first three steps and the last call are always made.
"""

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch.utils import _pytree as pytree

from img2img.domain.parameters import Speed
from img2img.domain.spec import DenoisingSpec

from ..engine.task import EngineTask
from .parameters import call_parameters

Forward = Callable[..., Any]


@dataclass(frozen=True)
class Tolerance:
    """The limits of a speed.

    Attributes:
        change: Largest expected change of the result, in standard deviations of latents, by calls skipped in a row.
        calls: Most calls that are skipped in a row.
    """

    change: float
    calls: int


TOLERANCES = {Speed.FAST: Tolerance(0.25, 2), Speed.TURBO: Tolerance(0.6, 4)}
# With schedulers that combine outputs of several steps.
TOLERANCES_WITH_HISTORY = {Speed.FAST: Tolerance(0.125, 2), Speed.TURBO: Tolerance(0.3, 3)}
# With schedulers that call the denoiser twice for each step.
TOLERANCES_OF_TWO_CALLS = {Speed.FAST: Tolerance(0.1, 2), Speed.TURBO: Tolerance(0.2, 3)}
# Steps at the start whose calls are always made.
FIRST_STEPS = 3
# Share of the effect of known errors that is compensated.
COMPENSATION = 0.5
# Part of the change that a line through the last two calls predicts.
DAMPING = 0.5


def attach_step_cache(pipeline: DiffusionPipeline, spec: DenoisingSpec, task: EngineTask) -> Callable[[], None]:
    """Give the pipeline object of a job a step cache for one call of it. `Speed.EXACT` changes nothing.

    Args:
        pipeline: has its own scheduler; its other components are shared.
        task: of the job; skipped calls are counted in its timeline.

    Returns:
        Function to call after each step of the scheduler.
    """
    if spec.speed is Speed.EXACT:
        return lambda: None
    # Older pipelines call back after some steps only.
    has_step_end = "callback_on_step_end" in call_parameters(pipeline)
    cache = StepCache(
        tolerance_of(spec.speed, pipeline.scheduler),
        spec.guidance_scale,
        pipeline.scheduler,
        task,
        one_pass=not has_step_end,
    )
    wrappers = {"unet": cache.wrap_denoiser, "transformer": cache.wrap_denoiser, "controlnet": cache.wrap_controlnet}
    for name, wrap in wrappers.items():
        module = getattr(pipeline, name, None)
        if module is not None:
            wrapped = copy(module)
            wrapped.forward = wrap(module.forward)
            setattr(pipeline, name, wrapped)
    return cache.end_call if has_step_end else lambda: None


@dataclass
class _Outputs:
    """The outputs of the denoiser for one of the forward passes of each step. Most pipelines have one such pass.

    Values are what is predicted: `p`, or the image that the denoiser sees.

    Attributes:
        made: Number of the step and value of the last two calls that were made, at different steps.
        skipped: Number of the call and of the step, and predicted value of the calls that were skipped since.
        error: Error of the prediction of the last call that was made, of `p`.
    """

    made: list[tuple[float, torch.Tensor]] = field(default_factory=list)
    skipped: list[tuple[int, float, torch.Tensor]] = field(default_factory=list)
    error: torch.Tensor | None = None

    def predict(self, step: float, damping: float) -> torch.Tensor:
        number, latest = self.made[-1]
        if len(self.made) == 1 or step == number:
            return latest
        before, earlier = self.made[0]
        return latest + damping * (step - number) / (number - before) * (latest - earlier)

    def add(self, step: float, value: torch.Tensor) -> None:
        others = [known for known in self.made if known[0] != step]
        self.made = [*others[-1:], (step, value)]
        self.skipped = []


class StepCache:
    """The state of one job."""

    def __init__(
        self,
        tolerance: Tolerance,
        guidance_scale: float,
        scheduler: SchedulerMixin,
        task: EngineTask,
        *,
        one_pass: bool = False,
    ) -> None:
        """Take the limits of the job.

        Args:
            one_pass: whether each call of the denoiser is one step of the scheduler, so that `end_call` is not needed.
        """
        self._scheduler = scheduler
        self._one_pass = one_pass
        self._tolerance = tolerance
        self._guidance_scale = guidance_scale
        self._task = task
        # Sigma at each call, and after the last.
        self._levels: list[float] = []
        # Changes where guidance ends: the rows without the prompt are then those with it.
        self._conditional = task.conditional
        self._call = 0
        self._passes: list[_Outputs] = []
        # Forward passes of the current call.
        self._passes_done = 0
        self._skips: bool | None = None
        # Error of `p` at the last call that was made, for each call since the one before, and the error expected next,
        # for each of the calls of a step.
        self._measured = [0.0, 0.0]
        self._error = [math.inf, math.inf]
        self._last_made = 0
        order = getattr(scheduler, "order", 1)
        self._is_second_order = order > 1
        self._predicts_image = self._is_second_order
        self._damping = 1.0 if self._is_second_order else DAMPING
        self._is_flow = not hasattr(scheduler, "alphas_cumprod")
        self._first_calls = FIRST_STEPS * order - (order - 1)
        # Expected change of the result by the calls skipped since.
        self._change = 0.0

    def wrap_denoiser(self, forward: Forward) -> Forward:
        """Return the forward of the job's denoiser."""

        def call(*args: Any, **kwargs: Any) -> Any:
            latents = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
            timestep = args[1] if len(args) > 1 else kwargs.get("timestep")
            if self._one_pass and self._passes_done:
                self.end_call()
            skips = self._decide(timestep)
            if self._passes_done == len(self._passes):
                self._passes.append(_Outputs())
            outputs = self._passes[self._passes_done]
            self._passes_done += 1
            if not skips:
                return self._make(outputs, latents, forward(*args, **kwargs))
            # ControlNets that run inside of the forward count their steps.
            getattr(forward, "skip_step", lambda: None)()
            return self._skip(outputs, latents)

        return call

    def wrap_controlnet(self, forward: Forward) -> Forward:
        """Return the forward of the job's ControlNets for a UNet, which run before it."""
        last: Any = None

        def call(sample: torch.Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal last
            if self._decide(timestep):
                return last
            residuals = forward(sample, timestep, *args, **kwargs)
            # Of the right shapes, without memory.
            last = pytree.tree_map_only(torch.Tensor, lambda r: r.new_zeros(()).expand(r.shape), residuals)
            return residuals

        return call

    def end_call(self) -> None:
        """Note that the scheduler has got the output of a call."""
        if not self._skips:
            self._measure()
            self._last_made, self._change = self._call, 0.0
        self._call += 1
        self._passes_done = 0
        self._skips = None

    def _decide(self, timestep: Any) -> bool:
        """Return whether to skip the current call, which is the same for all its forward passes."""
        if self._skips is None:
            if not self._levels:
                self._levels = noise_levels(self._scheduler, timestep)
            if self._conditional is not self._task.conditional:
                self._forget()
            self._skips = self._is_negligible()
        return self._skips

    def _forget(self) -> None:
        """Predict nothing until two more calls were made."""
        self._conditional = self._task.conditional
        self._passes, self._error, self._measured = [], [math.inf, math.inf], [0.0, 0.0]

    def _is_negligible(self) -> bool:
        distance = self._call - self._last_made
        if self._call < self._first_calls or self._call >= len(self._levels) - 2 or distance > self._tolerance.calls:
            return False
        error = distance * self._error[self._kind_of(self._call)]
        change = self._change + abs(self._delta(self._call)) * error
        if not change <= self._tolerance.change:
            return False
        self._change = change
        return True

    def _delta(self, call: int) -> float:
        """Return the change of sigma by a call."""
        if self._is_second_order:
            # Each step has two calls of half its weight, and sigma twice.
            return (self._levels[call + 1] - self._levels[max(call - 1, 0)]) / 2
        return self._levels[call + 1] - self._levels[call]

    def _step_of(self, call: int) -> float:
        """Return the number of the step that ends at the sigma of a call."""
        return (call + 1) // 2 if self._is_second_order else call

    def _make(self, outputs: _Outputs, latents: Any, result: Any) -> Any:
        """Learn from a call of the denoiser. Returns its result, with the errors before it compensated."""
        output = _stacked(result[0])
        scale, signal = self._noise_in(latents, output)
        p = scale * output.float() + signal
        value, factor = self._value_of(p, latents)
        step = self._step_of(self._call)
        if outputs.made:
            outputs.error = (value - outputs.predict(step, self._damping)) / factor
        correction = self._correction(outputs, value)
        outputs.add(step, value)
        if correction is None:
            return result
        return (_like(result[0], output + (correction / scale).to(output.dtype)), *result[1:])

    def _skip(self, outputs: _Outputs, latents: Any) -> Any:
        """Return a predicted result of the denoiser."""
        self._task.timeline.skipped_calls += 1
        step = self._step_of(self._call)
        value = outputs.predict(step, self._damping)
        outputs.skipped.append((self._call, step, value))
        p = self._p_of(value, latents)
        scale, signal = self._noise_in(latents, p)
        output = (p - signal) / scale
        return (_like(latents, output.to(_stacked(latents).dtype)),)

    def _value_of(self, p: torch.Tensor, latents: Any) -> tuple[torch.Tensor, float]:
        """Return the value that is predicted, and by how much more it changes than `p`."""
        if not self._predicts_image:
            return p, 1.0
        z, sigma = self._z_and_sigma(latents, p.shape[1])
        return z - sigma * p, -sigma

    def _p_of(self, value: torch.Tensor, latents: Any) -> torch.Tensor:
        if not self._predicts_image:
            return value
        z, sigma = self._z_and_sigma(latents, value.shape[1])
        return (z - value) / sigma

    def _z_and_sigma(self, latents: Any, channels: int) -> tuple[torch.Tensor, float]:
        sigma = self._levels[self._call]
        z = _stacked(latents)[:, :channels].float()
        return (z if self._is_flow else math.sqrt(1 + sigma**2) * z), sigma

    def _noise_in(self, latents: Any, output: torch.Tensor) -> tuple[float, torch.Tensor | float]:
        """Return the numbers a and b with which p is a times the output of the denoiser plus b."""
        config = self._scheduler.config
        if config.get("prediction_type") != "v_prediction":
            return 1.0, 0.0
        signal = 1 / math.sqrt(1 + self._levels[self._call] ** 2)
        # An inpainting denoiser has more inputs than outputs.
        return signal, math.sqrt(1 - signal**2) * latents[:, : output.shape[1]].float()

    def _correction(self, outputs: _Outputs, value: torch.Tensor) -> torch.Tensor | None:
        """Return the change of `p` that compensates the errors of the calls skipped before it."""
        delta = self._delta(self._call)
        if not outputs.skipped or not delta or self._call >= len(self._levels) - 2:
            return None
        number, before = outputs.made[-1]
        step = self._step_of(self._call)
        correction = torch.zeros_like(value)
        for call, skipped_step, predicted in outputs.skipped:
            share = (skipped_step - number) / (step - number) if step > number else 1.0
            factor = -self._levels[call] if self._predicts_image else 1.0
            error = before + share * (value - before) - predicted
            correction += error * (self._delta(call) / delta / factor)
        return COMPENSATION * correction

    def _measure(self) -> None:
        """Update the expected error from the call that was made."""
        errors = [outputs.error for outputs in self._passes if outputs.error is not None]
        if errors:
            first, *others = torch.cat(errors)
            # Guidance multiplies the difference between the rows.
            guided = [first + self._guidance_scale * (other - first) for other in others] or [first]
            rms = torch.stack([error.square().mean() for error in guided]).max().sqrt().item()
            error, kind = rms / (self._call - self._last_made), self._kind_of(self._call)
            measured = self._measured[kind]
            growth = error / measured if measured else 1.0
            self._error[kind] = error * max(1.0, growth)
            self._measured[kind] = error

    def _kind_of(self, call: int) -> int:
        """Return which of the calls of a step a call is: their predictions have different errors."""
        return call % 2 if self._is_second_order else 0


def tolerance_of(speed: Speed, scheduler: SchedulerMixin) -> Tolerance:
    """Return the limits of a speed with a scheduler."""
    if getattr(scheduler, "order", 1) > 1:
        return TOLERANCES_OF_TWO_CALLS[speed]
    return (TOLERANCES_WITH_HISTORY if hasattr(scheduler, "model_outputs") else TOLERANCES)[speed]


def noise_levels(scheduler: SchedulerMixin, timestep: Any) -> list[float]:
    """Return sigma at each remaining call of the denoiser, and after the last one.

    Args:
        timestep: of the first call.
    """
    begin = getattr(scheduler, "begin_index", None)
    if begin is None:
        # Schedulers without it are those of diffusion. `pndm` can have a timestep twice.
        matches = (scheduler.timesteps == timestep).nonzero() if hasattr(scheduler, "alphas_cumprod") else []
        begin = int(matches[-1]) if len(matches) else 0
    if hasattr(scheduler, "sigmas"):
        levels: list[float] = scheduler.sigmas.tolist()[begin:]
        return levels
    alphas = scheduler.alphas_cumprod[scheduler.timesteps.cpu().long()].tolist()
    alphas.append(float(scheduler.final_alpha_cumprod))
    return [math.sqrt((1 - alpha) / alpha) if alpha else math.inf for alpha in alphas[begin:]]


def _stacked(output: Any) -> torch.Tensor:
    """Return the output of a denoiser, of which some return a list with a tensor per row."""
    return torch.stack(list(output)) if isinstance(output, Sequence) else output


def _like(model: Any, output: torch.Tensor) -> Any:
    return list(output.unbind(0)) if isinstance(model, Sequence) else output
