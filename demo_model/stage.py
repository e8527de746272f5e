"""What both trainings share: a clock that survives restarts, a learning rate that follows it, averaged weights."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from .recipe import Stage
from .workers import average_over_workers, is_first_worker, worker_count

WARM_UP_STEPS = 100
MEETING_STEPS = 8


class StageTrainer:
    """Steps an optimizer until the stage's minutes are spent; saves and resumes everything that it holds."""

    def __init__(
        self, name: str, module: nn.Module, stage: Stage, checkpoint: Path, checkpoint_every_min: float
    ) -> None:
        self.stage = stage
        self.steps = 0
        self.spent_s = 0.0
        self._recent_loss: float | None = None
        self._name = name
        self._module = module
        # On a CPU, a pause or what other programs take is no training time: the schedule must not run on through it.
        self._clock = time.process_time if next(module.parameters()).device.type == "cpu" else time.monotonic
        self._checkpoint = checkpoint
        self._checkpoint_every_s = 60 * checkpoint_every_min
        self._optimizer = torch.optim.AdamW(module.parameters(), lr=stage.learning_rate, weight_decay=0.01, fused=True)
        self._ema = EMAModel(module.parameters(), decay=stage.ema_decay, use_ema_warmup=True, power=0.75)
        if checkpoint.exists():
            self._resume(torch.load(checkpoint, weights_only=True, map_location="cpu"))
        self._tick = self._clock()
        self._saved_at_s = self.spent_s

    @property
    def worker_batch(self) -> int:
        """This worker's part of a batch."""
        return max(self.stage.batch // worker_count(), 1)

    @property
    def progress(self) -> float:
        """Share of the stage's time that is spent, 0 to 1."""
        return min(self.spent_s / (60 * self.stage.minutes), 1.0)

    def bar(self) -> Progress:
        """A progress bar with the loss and the time left; advance it by calling `step` within it."""
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>5.1f}%"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            refresh_per_second=0.1, disable=not is_first_worker(),
        )  # fmt: skip
        bar.add_task(self._name, total=1.0, completed=self.progress)  # type: ignore[arg-type]
        return bar

    def step(self, loss: torch.Tensor, bar: Progress) -> None:
        """One update from this loss; a checkpoint when it is time for one."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._module.parameters(), 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = self.stage.learning_rate * self._learning_rate_share()
        self._optimizer.step()
        self._ema.step(self._module.parameters())
        self.steps += 1
        self._report(float(loss.detach()), bar)
        if self.steps % MEETING_STEPS == 0:
            self._meet_the_others()
            if is_first_worker() and self.spent_s - self._saved_at_s > self._checkpoint_every_s:
                self.save()

    def use_averaged_weights(self) -> None:
        """From here on the module has its averaged weights; training it further would be a mistake."""
        self._ema.copy_to(self._module.parameters())

    def save(self) -> None:
        """Write the checkpoint; a reader sees the old one or the new one, never half of one."""
        unfinished = self._checkpoint.with_suffix(".part")
        state = {
            "module": self._module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "ema": self._ema.state_dict(),
            "steps": self.steps,
            "spent_s": self.spent_s,
        }
        torch.save(state, unfinished)
        unfinished.replace(self._checkpoint)
        self._saved_at_s = self.spent_s

    def _resume(self, state: dict[str, Any]) -> None:
        self._module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._ema.load_state_dict(state["ema"])
        self.steps, self.spent_s = state["steps"], state["spent_s"]

    def _learning_rate_share(self) -> float:
        warm_up = min((self.steps + 1) / WARM_UP_STEPS, 1.0)
        return warm_up * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * self.progress)))

    def _meet_the_others(self) -> None:
        """Agree with the other workers on the weights and on the time spent."""
        now = self._clock()
        self.spent_s = average_over_workers(list(self._module.parameters()), self.spent_s + now - self._tick)
        self._tick = now

    def _report(self, loss: float, bar: Progress) -> None:
        self._recent_loss = loss if self._recent_loss is None else 0.98 * self._recent_loss + 0.02 * loss
        bar.update(bar.task_ids[0], completed=self.progress)
        if self.steps % 50 == 0 and is_first_worker():
            minutes = self.spent_s / 60
            bar.console.print(f"{self._name} step {self.steps} minute {minutes:.1f} loss {self._recent_loss:.4f}")
