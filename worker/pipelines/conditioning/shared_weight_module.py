"""A module's twin: a second object over the same weights, which wears adapters while the module itself stays as it is.

What a twin wears in a call is state of the module, so it goes into the call as a constant argument: only calls that
wear the same merge, and the twin changes just before the merged call runs.
"""

import copy
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import set_adapters_for_text_encoder
from transformers import PreTrainedModel

from ...engine.gate import Gate


@dataclass(frozen=True)
class ActiveAdapters:
    """What counts in one call, and how strongly."""

    loras: tuple[tuple[str, float], ...] = ()  # adapter and scale, sorted, so that the order in a request is no reason
    image_scales: tuple[float, ...] = ()  # of the image prompts, in their order


def copy_sharing_weights(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of the module objects, with the same parameters and buffers. Make it before gates stand in the module."""
    shared = itertools.chain(module.parameters(), module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in shared})


class SharedWeightModule:
    """A twin behind a gate of its own, and the pipeline object by which diffusers changes what it wears."""

    def __init__(
        self,
        name: str,
        pipeline: DiffusionPipeline,
        adapters: frozenset[str],
        *,
        remember_bytes: int,
        shared: Sequence[str] = (),
    ) -> None:
        """name: of the component of `pipeline` that is the twin. adapters: the LoRAs that have weights in it.

        shared: arguments of the component without rows of their own.
        """
        self._module: torch.nn.Module = getattr(pipeline, name)
        self._pipeline = pipeline
        self._adapters = adapters
        self._worn: ActiveAdapters | None = None
        stage = "encode_prompt" if name.startswith("text_encoder") else "denoise"
        self._gate = Gate(stage, self._run, remember_bytes=remember_bytes, shared=shared)

    def own(self, loras: tuple[tuple[str, float], ...]) -> tuple[tuple[str, float], ...]:
        """Those of the LoRAs that have weights in this twin."""
        return tuple(lora for lora in loras if lora[0] in self._adapters)

    def wearing(self, worn: ActiveAdapters) -> torch.nn.Module:
        """The twin as one job sees it: to its pipeline a module like any other."""
        face = copy.copy(self._module)
        face.forward = functools.partial(self._gate, worn=worn)
        return face

    def _run(self, *args: Any, worn: ActiveAdapters, **kwargs: Any) -> Any:
        if worn != self._worn:
            self._worn = None  # unknown, should the change fail halfway
            self._put_on(worn)
            self._worn = worn
        return self._module(*args, **kwargs)

    def _put_on(self, worn: ActiveAdapters) -> None:
        if self._adapters:
            names, scales = [name for name, _ in worn.loras], [scale for _, scale in worn.loras]
            if isinstance(self._module, PreTrainedModel):
                set_adapters_for_text_encoder(names, self._module, scales)
            else:
                self._module.set_adapters(names, scales)  # type: ignore[operator]
        if worn.image_scales:
            self._pipeline.set_ip_adapter_scale(list(worn.image_scales))
