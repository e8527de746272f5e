"""Modular pipelines of diffusers, which consist of blocks, with the interface of an ordinary pipeline."""

import copy
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, ClassVar

import diffusers
import torch
from diffusers import DiffusionPipeline, ModularPipeline, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline import LoopSequentialPipelineBlocks
from PIL import Image

from img2img.domain.parameters import Task

from ..errors import StartupError
from .call_signature import CallSignature
from .image_processors import check_denoiser
from .loading.locations import components
from .modular_blocks import adds_hooks, blocks_of, call_inputs, changes_modules, guider_of, tasks_of

# An input of requests that modular pipelines have as a setting of their guider.
_SCALE = "guidance_scale"


class ModularAdapter(DiffusionPipeline):  # type: ignore[misc]
    """A modular pipeline. `modular_calls` makes a subclass for each index of a model.

    Attributes:
        modular_kind: class of the modular pipeline.
        blocks: its blocks, without those that a model may lack.
        index: index of the model in the form of an ordinary one.
        parts: names of the components that its calls need.
        sets_guider: whether the guidance scale is a setting of the guider.
        changes_modules: whether a call changes modules that all jobs share.
    """

    modular_kind: ClassVar[type[ModularPipeline]]
    blocks: ClassVar[SequentialPipelineBlocks]
    index: ClassVar[Mapping[str, Any]]
    parts: ClassVar[tuple[str, ...]]
    sets_guider: ClassVar[bool]
    changes_modules: ClassVar[bool]

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        self.register_modules(**parts)
        self.modular = self._make_modular()
        self.modular.register_components(**parts)
        self.vae_scale_factor: int = getattr(self.modular, "vae_scale_factor", 8)

    @classmethod
    def from_pretrained(cls, folder: Any, **loaded: Any) -> "ModularAdapter":
        """Return the pipeline of a folder.

        Args:
            loaded: components that are loaded already. Other arguments are ignored: only modules have use for them.
        """
        modular = cls._make_modular(str(folder))
        parts: dict[str, Any] = {}
        for name in cls.parts:
            part = loaded[name] if name in loaded else getattr(modular, name)
            parts[name] = modular.get_component_spec(name).load(local_files_only=True) if part is None else part
        if "transformer" in parts:
            check_denoiser(parts["transformer"])
        return cls(**parts)

    @classmethod
    def _make_modular(cls, folder: str | None = None) -> ModularPipeline:
        return cls.modular_kind(
            blocks=copy.deepcopy(cls.blocks), config_dict=dict(cls.index), pretrained_model_name_or_path=folder
        )

    def run(self, inputs: dict[str, Any]) -> tuple[list[Image.Image]]:
        """Run the blocks with the components of this object: a job has schedulers and guiders of its own."""
        callback = inputs.pop("callback_on_step_end", None)
        modular = copy.copy(self.modular)
        for name in self.parts:
            setattr(modular, name, getattr(self, name))
        if self.sets_guider and _SCALE in inputs:
            modular.guider = modular.guider.new(guidance_scale=inputs.pop(_SCALE))
        modular._blocks = copy.deepcopy(self.blocks)
        generator = inputs.get("generator")
        for loop in _loops(modular._blocks):
            loop.set_progress_bar_config(disable=True)
            loop.loop_step = self._observed(loop.loop_step, callback, generator)
        images: list[Image.Image] = self.prepare_latents(modular, inputs)
        return (images,)

    def prepare_latents(self, modular: ModularPipeline, inputs: Mapping[str, Any]) -> Any:
        """Run the blocks. What they draw before their first step is the initial noise: `vary_latents` replaces this."""
        return modular(output="images", **inputs)

    def _observed(self, step: Any, callback: Any, generator: Any) -> Any:
        def observed(parts: Any, state: Any, *, i: int, t: Any, **others: Any) -> Any:
            is_varied = hasattr(generator, "drawing_initial_noise")
            with generator.drawing_initial_noise(is_initial=False) if is_varied else nullcontext():
                parts, state = step(parts, state, i=i, t=t, **others)
            if callback is not None:
                callback(self, i, t, {"latents": getattr(state, "latents", None)})
            return parts, state

        return observed


def modular_calls(index: Mapping[str, Any]) -> dict[Task, CallSignature]:
    """Return how each task of a modular pipeline is called.

    Args:
        index: content of its modular_model_index.json, in the form of an ordinary index.

    Raises:
        StartupError: it lacks a component, or no request gives the inputs of its blocks.
    """
    return dict(_modular_calls(json.dumps(index, sort_keys=True)))


@lru_cache(maxsize=16)
def _modular_calls(index_json: str) -> Mapping[Task, CallSignature]:
    index = json.loads(index_json)
    class_name = index["_class_name"]
    blocks = blocks_of(index)
    tasks = tasks_of(blocks)
    parameters = call_inputs(class_name, tasks)
    specs = {spec.name: spec for active in tasks.values() for spec in active.expected_components}
    for name, spec in specs.items():
        if spec.default_creation_method == "from_pretrained" and name not in components(index):
            raise StartupError(
                f"{class_name} needs the component {name}, and the model has no folder {name}; components of other "
                "repositories are not loaded: copy it there, and name it in modular_model_index.json"
            )
    guider = guider_of(specs, index)
    has_scale = any(_SCALE in takes for takes in parameters.values())
    scale = None if has_scale else getattr(guider, _SCALE, None)
    if scale is not None:
        takes_scale = inspect.Parameter(_SCALE, inspect.Parameter.KEYWORD_ONLY, default=scale)
        parameters = {task: {_SCALE: takes_scale, **takes} for task, takes in parameters.items()}
    kind = _adapter_class(
        class_name,
        parameters,
        blocks=blocks,
        index=index,
        parts=tuple(specs),
        sets_guider=scale is not None,
        changes_modules=adds_hooks(guider) or any(changes_modules(active) for active in tasks.values()),
    )
    return {task: CallSignature(kind, takes) for task, takes in parameters.items()}


def _adapter_class(
    class_name: str, parameters: Mapping[Task, Mapping[str, inspect.Parameter]], **attributes: Any
) -> type[ModularAdapter]:
    """Return the class of a model.

    Args:
        parameters: of the call for each task.
        attributes: those of `ModularAdapter` beside its kind.
    """

    def construct(self: ModularAdapter, **given: Any) -> None:
        ModularAdapter.__init__(self, **given)

    @torch.no_grad()
    def call(self: ModularAdapter, **inputs: Any) -> tuple[list[Image.Image]]:
        return self.run(inputs)

    takes = {name: one.replace(default=None) for each in parameters.values() for name, one in each.items()}
    takes["callback_on_step_end"] = inspect.Parameter(
        "callback_on_step_end", inspect.Parameter.KEYWORD_ONLY, default=None
    )
    # diffusers reads the names of the components from the signature.
    parts = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in attributes["parts"]]
    construct.__signature__ = _signature(parts)  # type: ignore[attr-defined]
    call.__signature__ = _signature(takes.values())  # type: ignore[attr-defined]
    return type(
        class_name,
        (ModularAdapter,),
        {
            "__module__": __name__,
            "__init__": construct,
            "__call__": call,
            "modular_kind": getattr(diffusers, class_name),
            **attributes,
        },
    )


def _signature(parameters: Any) -> inspect.Signature:
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return inspect.Signature([own, *parameters])


def _loops(block: Any) -> Iterator[LoopSequentialPipelineBlocks]:
    if isinstance(block, LoopSequentialPipelineBlocks):
        yield block
    for part in block.sub_blocks.values():
        yield from _loops(part)
