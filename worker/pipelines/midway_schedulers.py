"""Multistep schedulers that start midway in the schedule at their right order, as image-to-image needs.

The stock schedulers take the position in the schedule for the number of outputs that they have seen. Below strength 1,
`lms` then leaves out terms of its first three steps, and `pndm` repeats its first step, so that one is missing at the
end: noise stays in the image. From the start of a schedule, these classes do the same as the stock classes.
"""

from typing import Any

import diffusers
import torch


class LMSDiscreteScheduler(diffusers.LMSDiscreteScheduler):  # type: ignore[misc]
    """Of order 1 in its first step, wherever that is, up to order 4."""

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        order: int = 4,
        return_dict: bool = True,
    ) -> Any:
        return super().step(model_output, timestep, sample, min(order, len(self.derivatives) + 1), return_dict)


class PNDMScheduler(diffusers.PNDMScheduler):  # type: ignore[misc]
    """Without the repetition of the first step, which the timesteps have at the start of the schedule only."""

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self._has_waited = False

    def step_plms(
        self, model_output: torch.Tensor, timestep: int, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        starts_midway = self.counter == 0 and timestep != self.timesteps[0]
        if starts_midway and timestep == self.timesteps[1] and not self._has_waited:
            # The second timestep comes twice.
            self._has_waited = True
            return (sample,) if not return_dict else diffusers.schedulers.scheduling_utils.SchedulerOutput(sample)
        result = super().step_plms(model_output, timestep, sample, return_dict)
        if starts_midway:
            self.counter += 1
        return result
