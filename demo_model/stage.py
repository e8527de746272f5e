"""Common parts of the training stages: a resumable clock, a learning rate schedule, averaged weights."""

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
    """Runs optimizer steps until the stage's time is used up. Saves and resumes its whole state."""

    def __init__(
        self, name: str, module: nn.Module, stage: Stage, checkpoint: Path, checkpoint_every_min: float
    ) -> None:
        self.stage = stage
        self.steps = 0
        self.spent_s = 0.0
        self._recent_loss: float | None = None
        self._name = name
        self._module = module
        # On a CPU, count processor time: pauses and other programs must not advance the schedule.
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
        """Batch size of this worker."""
        return max(self.stage.batch // worker_count(), 1)

    @property
    def progress(self) -> float:
        """Share of the training time that is used, 0 to 1."""
        return min(self.spent_s / (60 * self.stage.minutes), 1.0)

    def bar(self) -> Progress:
        """Return a progress bar with loss and remaining time; `step` advances it."""
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>5.1f}%"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            refresh_per_second=0.1, disable=not is_first_worker(),
        )  # fmt: skip
        bar.add_task(self._name, total=1.0, completed=self.progress)  # type: ignore[arg-type]
        return bar

    def step(self, loss: torch.Tensor, bar: Progress) -> None:
        """Run one optimizer step; save a checkpoint when one is due."""
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
            self._synchronise()
            if is_first_worker() and self.spent_s - self._saved_at_s > self._checkpoint_every_s:
                self.save()

    def use_averaged_weights(self) -> None:
        """Load the averaged weights into the module. Do not train it afterwards."""
        self._ema.copy_to(self._module.parameters())

    def save(self) -> None:
        """Write the checkpoint atomically."""
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

    def _synchronise(self) -> None:
        """Average the weights and the clock over all workers."""
        now = self._clock()
        self.spent_s = average_over_workers(list(self._module.parameters()), self.spent_s + now - self._tick)
        self._tick = now

    def _report(self, loss: float, bar: Progress) -> None:
        self._recent_loss = loss if self._recent_loss is None else 0.98 * self._recent_loss + 0.02 * loss
        bar.update(bar.task_ids[0], completed=self.progress)
        if self.steps % 50 == 0 and is_first_worker():
            minutes = self.spent_s / 60
            bar.console.print(f"{self._name} step {self.steps} minute {minutes:.1f} loss {self._recent_loss:.4f}")
