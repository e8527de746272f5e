"""The random numbers of a job: those that diffusers would draw, drawn earlier and on another thread."""

from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from diffusers.utils import torch_utils

from .replaced_functions import replace_in_diffusers
from .uploads import upload

# Draws of a job: shape and dtype of each.
Draws = tuple[tuple[tuple[int, ...], torch.dtype], ...]

_stock = torch_utils.randn_tensor


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
        wanted = tuple(shape), dtype
        self.draws.append(wanted)
        if self._ahead:
            before, noise, after = self._ahead.popleft()
            if (tuple(noise.shape), noise.dtype) == wanted and torch.equal(before, self.get_state()):
                self.set_state(after)
                return noise
            self._ahead.clear()
        return torch.randn(wanted[0], generator=self, dtype=dtype)


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


@cache
def use_job_noise() -> None:
    """Let the pipelines and schedulers of diffusers draw from the generators of jobs."""
    replace_in_diffusers("randn_tensor", _stock, _randn_tensor)
