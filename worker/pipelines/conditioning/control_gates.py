"""Gates of ControlNets, which let jobs with different scales share a call."""

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from diffusers import ControlNetUnionModel, MultiControlNetModel
from torch.utils import _pytree as pytree

from ...engine.gate import Gate
from ..uploads import upload_arguments

Residuals = tuple[list[torch.Tensor], torch.Tensor]


class PerRequestScale:
    """Forward of a ControlNet for a UNet that applies `conditioning_scale` after the batched call.

    A ControlNet multiplies its outputs by the scale as its last operation. Running the batch with scale 1 and
    multiplying the rows of each job afterwards gives the same numbers bit for bit, and jobs of different scales can be
    batched together. Scale 0 (outside of `control_guidance_start` and `control_guidance_end`) returns zeros without
    a call. A union ControlNet with several maps applies their scales to its inputs: only calls with equal scales are
    batched then.
    """

    def __init__(self, net: torch.nn.Module) -> None:
        self._gate = Gate("control", upload_arguments(net.forward))
        if isinstance(net, ControlNetUnionModel):
            self._gate = Gate("control", _attending_within_calls(net))
            self._calls: Iterator[int] | None = itertools.count(1)
        else:
            self._calls = None
        self._parameters = inspect.signature(type(net).forward)
        # Shapes of the residuals by shape of the sample, both without the batch dimension.
        self._shapes: dict[torch.Size, list[torch.Size]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Residuals:
        """Return the residuals of the down blocks and of the middle block, as with `return_dict=False`."""
        bound = self._parameters.bind(None, *args, **kwargs)
        # Pipelines pass different subsets of the arguments; calls are batched only if their arguments match.
        bound.apply_defaults()
        arguments = {name: value for name, value in bound.arguments.items() if name not in ("self", "return_dict")}
        scale, sample = arguments.pop("conditioning_scale"), arguments["sample"]
        if self._calls is not None:
            # Two-dimensional numbers that are not 0: the engine's probe makes another caller of them.
            arguments["caller"] = torch.full((len(sample), 1), next(self._calls), dtype=torch.float64)
        if isinstance(scale, Sequence):
            down, middle = self._gate(**arguments, conditioning_scale=scale, return_dict=False)
            return list(down), middle
        shapes = self._shapes.get(sample.shape[1:])
        if scale == 0 and shapes:
            residuals = [sample.new_zeros((len(sample), *shape)) for shape in shapes]
        else:
            down, middle = self._gate(**arguments, conditioning_scale=1.0, return_dict=False)
            self._shapes[sample.shape[1:]] = [residual.shape[1:] for residual in (*down, middle)]
            residuals = [residual * scale for residual in (*down, middle)]
        return residuals[:-1], residuals[-1]


def _attending_within_calls(net: Any) -> Callable[..., Any]:
    """Return the forward of a union ControlNet for merged calls.

    Its attention over the maps takes the rows of a batch for a sequence: the rows with and without the prompt of one
    job see each other. A mask keeps them from seeing rows of other jobs.
    """
    forward = upload_arguments(net.forward)

    def run(*, caller: torch.Tensor, **kwargs: Any) -> Any:
        is_other = caller != caller.T
        mask = torch.zeros(is_other.shape).masked_fill(is_other, float("-inf")) if is_other.any() else None
        for layer in net.transformer_layes:
            layer.attn_mask = mask
        return forward(**kwargs)

    return run


def scaled_samples(net: torch.nn.Module, shared: Sequence[str]) -> Callable[..., Any]:
    """Return the forward of a ControlNet for a transformer that applies `conditioning_scale` after the batched call.

    Args:
        shared: keyword arguments of the ControlNet without a batch dimension.
    """
    gate = Gate("control", upload_arguments(net.forward), shared=shared)

    def call(*, conditioning_scale: float, **kwargs: Any) -> Any:
        samples = gate(**kwargs, conditioning_scale=1.0, return_dict=False)
        return pytree.tree_map_only(torch.Tensor, lambda sample: sample * conditioning_scale, samples)

    return call


class ControlGroup(MultiControlNetModel):  # type: ignore[misc]
    """The ControlNets of one job, of which some are unions. Adds their residuals.

    A union gets all of its maps in one call, as it was trained.
    """

    def __init__(self, nets: Sequence[torch.nn.Module], modes: Sequence[int | None]) -> None:
        """Take the ControlNet of each control, and the modes of those that are unions."""
        super().__init__(list(nets))
        self._modes = tuple(modes)
        # Positions of the controls that share a call.
        self._calls: list[list[int]] = []
        for index, net in enumerate(nets):
            first = next((call for call in self._calls if nets[call[0]] is net), None)
            if first is None or modes[index] is None:
                self._calls.append([index])
            else:
                first.append(index)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: Sequence[torch.Tensor],
        conditioning_scale: Sequence[float],
        **kwargs: Any,
    ) -> Residuals:
        """Return the sums of the residuals of the down blocks and of the middle block."""
        total: Residuals | None = None
        for indices in self._calls:
            maps, scales = [controlnet_cond[i] for i in indices], [conditioning_scale[i] for i in indices]
            modes = [mode for i in indices if (mode := self._modes[i]) is not None]
            net = self.nets[indices[0]]
            down, middle = net(
                sample,
                timestep,
                encoder_hidden_states,
                controlnet_cond=maps if modes else maps[0],
                conditioning_scale=scales[0] if len(scales) == 1 else scales,
                **(_mode_arguments(net, modes, encoder_hidden_states) if modes else {}),
                **kwargs,
            )
            if total is None:
                total = list(down), middle
            else:
                total = [before + new for before, new in zip(total[0], down, strict=True)], total[1] + middle
        assert total is not None
        return total


def _mode_arguments(net: Any, modes: Sequence[int], like: torch.Tensor) -> dict[str, Any]:
    """Return the arguments of a union ControlNet for the modes of its maps, with a row for each row of `like`."""
    active = torch.zeros(net.config.num_control_type, device=like.device, dtype=like.dtype)
    active[list(modes)] = 1
    rows = len(like)
    return {
        "control_type": active.repeat(rows, 1),
        # Per row, so that jobs of different modes can share a call.
        "control_type_idx": [torch.full((rows,), mode, device=like.device) for mode in modes],
    }
