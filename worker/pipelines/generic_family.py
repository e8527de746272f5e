"""The family of a pipeline class that the table of families does not list, made from the signatures of its calls."""

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from diffusers.modular_pipelines.flux3.prompt_upsampler import MAX_REFERENCES
from diffusers.pipelines import auto_pipeline

from img2img.domain.conditioning import MAX_REFERENCE_IMAGES
from img2img.domain.parameters import DIFFUSION_SCHEDULERS, Scheduler, Task
from img2img.domain.spec import DenoisingSpec

from ..errors import StartupError
from .call_signature import CallSignature, read_call
from .families import SIGMAS_SCHEDULERS, Family
from .image_processors import image_only_processor
from .modular_adapter import ModularAdapter, modular_calls
from .modular_blocks import is_modular
from .pipeline_arguments import Arguments

# Ends of the names of classes that share the components of another one.
_SIBLINGS = ("Img2ImgPipeline", "InpaintPipeline", "InpaintingPipeline")
_END = re.compile(r"(Img2Img|Inpaint|Inpainting|Modular)?Pipeline$")
_MAPPINGS = (
    auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
    auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING,
)
# Methods by which a pipeline changes modules that all jobs share, for the time of its call.
_CHANGES_MODULES = re.compile(r"set_attn_processor|_set_pag_attn_processor|register_forward_(pre_)?hook")


def generic_family(index: Mapping[str, Any]) -> Family:
    """Return the family of a model.

    Args:
        index: content of its model_index.json, or of its modular_model_index.json in the same form.

    Raises:
        StartupError: diffusers has no such class, or no request gives the arguments of its call.
    """
    class_name = index["_class_name"]
    if is_modular(class_name):
        return _family(class_name, modular_calls(index), index)
    own = _pipeline(class_name)
    if own is None:
        # Of a class whose packages are not all installed, diffusers has a substitute.
        packages = " ".join(getattr(getattr(diffusers, class_name, None), "_backends", ()))
        if packages:
            raise StartupError(f"{class_name} needs the packages {packages}; run `pip install {packages}`")
        raise StartupError(f"diffusers {diffusers.__version__} has no pipeline {class_name}; update it")
    calls: dict[Task, CallSignature] = {}
    reason = ""
    for kind in (own, *_siblings(own)):
        if kind is not own and not _can_be_built(kind, index):
            continue
        try:
            call = read_call(kind)
        except StartupError as error:
            reason = reason or str(error)
        else:
            for task in call.tasks:
                calls.setdefault(task, call)
    if not calls:
        raise StartupError(f"{class_name} is not supported: {reason}")
    return _family(class_name, calls, index)


def _family(class_name: str, calls: Mapping[Task, CallSignature], index: Mapping[str, Any]) -> Family:
    first = next(iter(calls.values()))

    def adapt(spec: DenoisingSpec, given: Arguments) -> Arguments:
        return calls[spec.task].arguments(spec, given)

    return Family(
        name=_name(class_name),
        class_names=(class_name,),
        pipelines={task: call.kind for task, call in calls.items()},
        schedulers=_schedulers(first.kind, index),
        cuda_dtype="bfloat16" if "transformer" in index else "float16",
        steps=first.steps,
        guidance_scale=first.guidance_scale,
        negative_prompt=all(call.negative_prompt for call in calls.values()),
        image_guidance=any("image_guidance_scale" in call.parameters for call in calls.values()),
        has_guidance=lambda pipeline: first.scale is not None and _guides(pipeline, first),
        max_images=_max_images(first) if first.takes_list else 1,
        guidance_rows=2 if first.negative_prompt else 1,
        unbatched=("img_ids", "txt_ids"),
        load_components=image_only_processor,
        adapt=adapt,
        is_generic=True,
        fixed_shapes=False,
        conditional=None,
        runs_alone=any(_changes_modules(call.kind) for call in calls.values()),
        full_strength=tuple(task for task, call in calls.items() if task is Task.INPAINT and not call.has_strength),
    )


def _max_images(call: CallSignature) -> int:
    upsamples = issubclass(call.kind, ModularAdapter) and "prompt_upsampler" in call.kind.parts
    return MAX_REFERENCES if upsamples else MAX_REFERENCE_IMAGES


def add_missing_settings(pipeline: DiffusionPipeline, family: Family) -> None:
    """Add the setting that a pipeline reads and its transformer does not have: Chroma has no guidance embedding."""
    transformer = pipeline.components.get("transformer")
    if transformer is None or "guidance_embeds" in transformer.config:
        return
    if any("transformer.config.guidance_embeds" in _source(kind.__call__) for kind in family.pipelines.values()):
        transformer.register_to_config(guidance_embeds=False)


def _pipeline(name: str) -> type[DiffusionPipeline] | None:
    kind = getattr(diffusers, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, DiffusionPipeline) else None


def _siblings(own: type[DiffusionPipeline]) -> Iterator[type[DiffusionPipeline]]:
    """Yield the pipelines that diffusers has for models of this class, by its tables, then by their names."""
    keys = {key for mapping in _MAPPINGS for key, kind in mapping.items() if kind is own}
    for mapping in _MAPPINGS[1:]:
        yield from (mapping[key] for key in keys if key in mapping and mapping[key] is not own)
    stem = _END.sub("", own.__name__)
    for end in _SIBLINGS:
        kind = _pipeline(stem + end)
        if kind is not None and kind is not own:
            yield kind


def _can_be_built(kind: type[DiffusionPipeline], index: Mapping[str, Any]) -> bool:
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return all(parameter.name in index or parameter.default is not parameter.empty for parameter in parameters)


def _schedulers(kind: type[DiffusionPipeline], index: Mapping[str, Any]) -> tuple[Scheduler, ...]:
    """Return the schedulers that a request can name: those that the class is declared to work with."""
    own = (index.get("scheduler") or ("", ""))[1]
    if own == "FlowMatchEulerDiscreteScheduler":
        return SIGMAS_SCHEDULERS
    declared = inspect.signature(kind.__init__).parameters.get("scheduler")
    if declared is not None and "KarrasDiffusionSchedulers" in str(declared.annotation):
        return DIFFUSION_SCHEDULERS
    return (Scheduler.MODEL,)


def _guides(pipeline: DiffusionPipeline, call: CallSignature) -> bool:
    """Return whether the guidance scale has an effect: distilled models ignore it."""
    if pipeline.config.get("is_distilled"):
        return False
    denoiser = pipeline.components.get("transformer")
    embeds = denoiser.config.get("guidance_embeds") if denoiser is not None else None
    return call.negative_prompt or embeds is not False


def _changes_modules(kind: type[DiffusionPipeline]) -> bool:
    """Return whether the call changes modules of the pipeline, so that two jobs would disturb each other."""
    if issubclass(kind, ModularAdapter):
        return kind.changes_modules
    source = _source(kind.__call__)
    called = set(re.findall(r"self\.(\w+)\(", source))
    sources = [source, *(_source(getattr(kind, name, None)) for name in called)]
    return any(_CHANGES_MODULES.search(text) for text in sources)


def _source(function: Any) -> str:
    try:
        return inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):
        return ""


def _name(class_name: str) -> str:
    """Return the name of the family: `chroma` for ChromaImg2ImgPipeline."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*|[0-9]+", _END.sub("", class_name))
    return "-".join(words).lower() or class_name.lower()
