"""The random numbers of a job: those that diffusers would draw, drawn earlier and on another thread."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils import torch_utils

from .replaced_functions import replace_in_diffusers
from .uploads import upload

# Draws of a job: shape and dtype of each.
Draws = tuple[tuple[tuple[int, ...], torch.dtype], ...]

_stock = torch_utils.randn_tensor
_stock_sample = DiagonalGaussianDistribution.sample


class JobGenerator(torch.Generator):
    """A CPU generator that can draw noise ahead. What it returns does not depend on whether it has.

    Attributes:
        draws: shapes and dtypes that were asked for so far.
    """

    def __new__(cls, _seed: int) -> "JobGenerator":
        """Create a generator on the CPU."""
        return super().__new__(cls, "cpu")  # type: ignore[call-arg]

    def __init__(self, seed: int) -> None:
        self.manual_seed(seed)
        self.draws: list[tuple[tuple[int, ...], torch.dtype]] = []
        # State before the draw, noise, state after it.
        self._ahead: deque[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = deque()
        # Generator and share of a variation, and whether the next draws are varied.
        self._variation: tuple[torch.Generator, float] | None = None
        self._varies = False
        self.has_varied = False

    def vary(self, subseed: int, strength: float) -> None:
        """Mix the initial noise with that of another seed."""
        self._variation = (torch.Generator().manual_seed(subseed), strength)

    @contextmanager
    def drawing_initial_noise(self, *, is_initial: bool = True) -> Iterator[None]:
        """Draw initial noise in the context, which is varied, or other noise within such a context."""
        before, self._varies = self._varies, is_initial and self._variation is not None
        try:
            yield
        finally:
            self._varies = before

    def draw_ahead(self, draws: Draws, *, pin: bool) -> None:
        """Draw noise for the next calls of `draw`.

        Args:
            draws: shapes and dtypes that they will probably ask for.
            pin: copy the noise to pinned memory.
        """
        twin = torch.Generator()
        twin.set_state(self.get_state())
        for shape, dtype in draws:
            before = twin.get_state()
            noise = torch.randn(shape, generator=twin, dtype=dtype)
            self._ahead.append((before, noise.pin_memory() if pin else noise, twin.get_state()))

    def draw(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return noise in main memory: that of `torch.randn` with this generator."""
        noise = self._draw(tuple(shape), dtype)
        if not self._varies:
            return noise
        assert self._variation is not None
        self.has_varied = True
        generator, share = self._variation
        return mix_noise(noise, torch.randn(noise.shape, generator=generator, dtype=dtype), share)

    def _draw(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        wanted = shape, dtype
        self.draws.append(wanted)
        if self._ahead:
            before, noise, after = self._ahead.popleft()
            if (tuple(noise.shape), noise.dtype) == wanted and torch.equal(before, self.get_state()):
                self.set_state(after)
                return noise
            self._ahead.clear()
        return torch.randn(shape, generator=self, dtype=dtype)


def mix_noise(noise: torch.Tensor, other: torch.Tensor, share: float) -> torch.Tensor:
    """Return noise with a share of other noise, and with the variance of both.

    Each column of latents is interpolated on a sphere, as in the AUTOMATIC1111 web UI.
    """
    first, second = (each.double() for each in (noise, other))
    cosine = (torch.nn.functional.normalize(first, dim=-2) * torch.nn.functional.normalize(second, dim=-2)).sum(
        -2, keepdim=True
    )
    angle = cosine.clamp(-1, 1).acos()
    arc = angle.sin()
    mixed = (((1 - share) * angle).sin() * first + (share * angle).sin() * second) / arc
    # Columns in the same direction, or in opposite ones, have no arc between them.
    return torch.where(arc > 1e-6, mixed, torch.lerp(first, second, share)).to(noise.dtype)


def _randn_tensor(
    shape: Any,
    generator: Any = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
) -> torch.Tensor:
    """Replace the function of that name of diffusers for the generators of jobs."""
    if not isinstance(generator, JobGenerator) or layout not in (None, torch.strided):
        noise: torch.Tensor = _stock(shape, generator=generator, device=device, dtype=dtype, layout=layout)
        return noise
    return upload(generator.draw(shape, dtype or torch.get_default_dtype()), torch.device(device or "cpu"))


def _sample(self: Any, generator: Any = None) -> Any:
    """Replace the method of the outputs of VAEs: their noise is not part of the initial noise."""
    is_varied = isinstance(generator, JobGenerator)
    with generator.drawing_initial_noise(is_initial=False) if is_varied else nullcontext():
        return _stock_sample(self, generator)


def vary_latents(pipeline: Any, generator: JobGenerator) -> None:
    """Let the initial noise that the pipeline object of a job draws be varied."""
    prepare_latents = pipeline.prepare_latents

    def prepare(*args: Any, **kwargs: Any) -> Any:
        with generator.drawing_initial_noise():
            return prepare_latents(*args, **kwargs)

    pipeline.prepare_latents = prepare


@cache
def use_job_noise() -> None:
    """Let the pipelines and schedulers of diffusers draw from the generators of jobs."""
    replace_in_diffusers("randn_tensor", _stock, _randn_tensor)
    DiagonalGaussianDistribution.sample = _sample
