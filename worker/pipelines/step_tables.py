"""The steps of a scheduler as tables of numbers, read off the stock scheduler.

The schedulers are linear: a step adds up the sample, the prediction, noise and what the scheduler keeps from earlier
steps, each times a number. `probe` finds these numbers by running the stock scheduler on unit vectors. So is guidance,
so that a step of a job is sums of tensors, which are calculated together with those of other jobs, just before the next
call of the denoiser.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..engine.deferred import Sum, combined, terms_of
from .job_noise import JobGenerator

# Attribute of a scheduler, and position if it is a list.
Path = tuple[str, int | None]
# Positions of inputs with their factors.
Terms = tuple[tuple[int, float], ...]

# Inputs of a step; after them come the tensors that the scheduler keeps.
SAMPLE, PREDICTION, NOISE, KEPT = range(4)
# The second row of a probe is this many times the first one: a step that clips its sample is not linear then.
_SCALE = 1000.0
_TOLERANCE = 1e-4
_NONE = 1e-10


@dataclass(frozen=True)
class Step:
    """One step of a schedule.

    Attributes:
        scale: factor of the sample as input of the denoiser.
        outputs: terms of the next sample, and of each tensor that the scheduler keeps for the next step.
        noise: dtype of the noise that the step draws; float64 for that of the prediction; None for no noise.
    """

    scale: float
    outputs: tuple[Terms, ...]
    noise: torch.dtype | None


class _UnitNoise(JobGenerator):
    """A generator whose noise is a unit vector."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.unit = torch.empty(0)

    def draw(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        self.draws.append((tuple(shape), dtype))
        return self.unit


def probe(scheduler: Any, stock: type[Any], timesteps: torch.Tensor, arguments: Mapping[str, Any]) -> list[Step] | None:
    """Return the steps of a scheduler, or None if it is not linear.

    Args:
        scheduler: a scheduler with timesteps that has not made a step; it cannot be used afterwards.
        stock: class with its methods.
        timesteps: those of the steps.
        arguments: further arguments of `step`; a `generator` is replaced.
    """
    noise = _UnitNoise(0)
    given = {**arguments, "return_dict": False} | ({"generator": noise} if "generator" in arguments else {})
    steps = []
    for timestep in timesteps:
        kept = _kept_tensors(scheduler)
        units = torch.eye(KEPT + len(kept), dtype=torch.float64)
        units = torch.stack([units, _SCALE * units], dim=1)[:, :, :, None, None]
        for path, unit in zip(kept, units[KEPT:], strict=True):
            _replace(scheduler, path, unit)
        noise.unit = units[NOISE]
        noise.draws.clear()
        one = torch.tensor([1.0, _SCALE], dtype=torch.float64).reshape(2, 1, 1, 1)
        scaled = stock.scale_model_input(scheduler, one, timestep) if hasattr(stock, "scale_model_input") else one
        sample = stock.step(scheduler, units[PREDICTION], timestep, units[SAMPLE], **given)[0]
        outputs = [sample, *_kept_tensors(scheduler).values()]
        if len(noise.draws) > 1 or not all(_is_linear(output) for output in (scaled, *outputs)):
            return None
        drawn = noise.draws[0][1] if noise.draws else None
        steps.append(Step(float(scaled.flatten()[0]), tuple(_terms(output) for output in outputs), drawn))
    return steps


def _kept_tensors(scheduler: Any) -> dict[Path, torch.Tensor]:
    """Return the tensors of the shape of samples that a scheduler has."""
    values: dict[Path, Any] = {}
    for name, value in vars(scheduler).items():
        entries = enumerate(value) if isinstance(value, list) else [(None, value)]
        values |= {(name, index): entry for index, entry in entries}
    return {
        path: value for path, value in values.items() if isinstance(value, torch.Tensor) and value.shape[2:] == (1, 1)
    }


def _replace(scheduler: Any, path: Path, value: torch.Tensor) -> None:
    name, index = path
    if index is None:
        setattr(scheduler, name, value)
    else:
        getattr(scheduler, name)[index] = value


def _is_linear(output: torch.Tensor) -> bool:
    small, large = output.double()
    return bool(torch.allclose(_SCALE * small, large, rtol=_TOLERANCE, atol=_TOLERANCE))


def _terms(output: torch.Tensor) -> Terms:
    factors = output[0].flatten().tolist()
    return tuple((position, factor) for position, factor in enumerate(factors) if abs(factor) > _NONE)


class TableRun:
    """The steps of one job."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        self._index = 0
        self._kept: list[Any] = []

    @property
    def scale(self) -> float:
        return self._steps[self._index].scale

    def step(self, prediction: Any, sample: Any, draw: Callable[[torch.dtype], torch.Tensor]) -> Sum:
        """Return the next sample, of the dtype of the prediction.

        Args:
            prediction: a tensor, or a sum that is not calculated yet.
            sample: the same.
            draw: returns noise of a dtype.
        """
        step = self._steps[self._index]
        self._index += 1
        inputs = [terms_of(sample), terms_of(prediction), [], *map(terms_of, self._kept)]
        if step.noise is not None:
            noise = draw(prediction.dtype if step.noise is torch.float64 else step.noise)
            inputs[NOISE] = terms_of(noise)
        # In 16 bit, tensors that the scheduler keeps would be rounded in each step.
        dtypes = [prediction.dtype, *[torch.float32] * (len(step.outputs) - 1)]
        following, *self._kept = (
            Sum(combined((inputs[position], factor) for position, factor in terms), prediction, dtype)
            for terms, dtype in zip(step.outputs, dtypes, strict=True)
        )
        following.group = self._kept
        return following
