"""A second instance of a module that shares its weights and carries adapters.

The original module stays unmodified, so requests without adapters are not affected. The active adapters of a call are a
constant argument of the call: only calls with equal adapters are batched, and the module is switched just before the
batched call runs.
"""

import copy
import functools
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import set_adapters_for_text_encoder
from transformers import PreTrainedModel

from ...engine.gate import Gate

Forward = Callable[..., Any]
LoraScales = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class ActiveAdapters:
    """The adapters that are active in one call, with their scales."""

    # (PEFT adapter name, scale), sorted, so that requests that list LoRAs in another order are batched too.
    loras: LoraScales = ()
    # Scales of the image prompts, in their order: of all blocks, or JSON of those of each block.
    image_scales: tuple[float | str, ...] = ()


def copy_sharing_weights(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of a module tree that shares all parameters and buffers, without the gate of the module."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in itertools.chain(module.parameters(), module.buffers())}
    gate = module.__dict__.get("forward")
    if isinstance(gate, Gate):
        # Copied to None instead: a gate refers to its module and to cached outputs.
        memo[id(gate)] = None
    copied = copy.deepcopy(module, memo)
    if isinstance(gate, Gate):
        del copied.forward
    return copied


class SharedWeightModule:
    """A pipeline component with adapters, behind its gate."""

    def __init__(
        self,
        name: str,
        pipeline: DiffusionPipeline,
        adapters: frozenset[str],
        gate: Callable[[Forward], Forward],
    ) -> None:
        """Wrap a component.

        Args:
            name: component of `pipeline`, a copy that shares weights.
            pipeline: pipeline through which diffusers sets the scales of IP-Adapters.
            adapters: PEFT names of the LoRAs that have weights in the component.
            gate: returns the gate of the component's forward.
        """
        self._module: torch.nn.Module = getattr(pipeline, name)
        self._pipeline = pipeline
        self._adapters = adapters
        self._active: ActiveAdapters | None = None
        self._gate = gate(self._run)

    @property
    def module(self) -> torch.nn.Module:
        return self._module

    def select(self, loras: LoraScales) -> LoraScales:
        """Return those of `loras` that have weights in this module."""
        return tuple(lora for lora in loras if lora[0] in self._adapters)

    def with_adapters(self, adapters: ActiveAdapters) -> torch.nn.Module:
        """Return a shallow copy of the module that runs with `adapters` active, for the pipeline of one job."""
        module = copy.copy(self._module)
        module.forward = functools.partial(self._gate, adapters=adapters)
        return module

    def _run(
        self,
        *args: Any,
        adapters: ActiveAdapters,
        prepare: Callable[[torch.nn.Module], dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call the module with its adapters.

        Args:
            prepare: returns more arguments of the call. It gets the module once the adapters are active.
        """
        if adapters != self._active:
            # Unknown until the switch has succeeded.
            self._active = None
            self._activate(adapters)
            self._active = adapters
        more = prepare(self._module) if prepare else {}
        return self._module(*args, **kwargs, **more)

    def _activate(self, adapters: ActiveAdapters) -> None:
        if self._adapters:
            names, scales = [name for name, _ in adapters.loras], [scale for _, scale in adapters.loras]
            if isinstance(self._module, PreTrainedModel):
                set_adapters_for_text_encoder(names, self._module, scales)
            else:
                self._module.set_adapters(names, scales)  # type: ignore[operator]
        if adapters.image_scales:
            # FLUX takes a list with one scale for a list of scales by layer, Stable Diffusion 3 takes no list.
            images = [json.loads(scale) if isinstance(scale, str) else scale for scale in adapters.image_scales]
            self._pipeline.set_ip_adapter_scale(images[0] if len(images) == 1 else images)
