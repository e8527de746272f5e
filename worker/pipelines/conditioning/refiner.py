"""The refiner of a Stable Diffusion XL model: a second model that runs the last steps of the schedule."""

import torch
from diffusers import DiffusionPipeline

from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.parameters import Task

from ...errors import StartupError
from ..families import Family, family_of
from ..loading.components import build_pipeline, load_pipeline
from ..loading.failures import reporting_failures
from ..loading.locations import PipelineLocation
from ..loading.single_file import find_checkpoint

FAMILY = "stable-diffusion-xl"
# The tasks whose pipelines can continue from latents.
TASKS = (Task.IMG2IMG, Task.INPAINT)
# Components that the published base model and refiner have in common.
COMMON = ("text_encoder", "text_encoder_2", "vae")


def load_refiner(config: ModelConfig, family: Family, base: DiffusionPipeline) -> DiffusionPipeline | None:
    """Load the refiner of a model. Components that equal those of the model are shared with it.

    Args:
        base: pipeline of the model, without gates and offloading.

    Returns:
        A pipeline whose own modules are in main memory.

    Raises:
        StartupError: it cannot be loaded or does not fit the model.
    """
    if config.refiner is None:
        if config.denoising_end is not None:
            raise StartupError("`denoising_end` is where a `refiner` takes over; set `refiner`, or remove the key")
        return None
    if family.name != FAMILY or not set(TASKS) & set(family.pipelines):
        raise StartupError(f"`refiner` is for image-to-image of Stable Diffusion XL, not for {family.name}; remove it")
    with reporting_failures("`refiner`"):
        refiner = _load(config.refiner, family, base.dtype)
        channels = (refiner.unet.config.in_channels, refiner.vae.config.latent_channels)
        if channels != (base.vae.config.latent_channels,) * 2:
            raise StartupError(f"its UNet has {channels[0]} input channels; a refiner has those of the latents")
        for name in COMMON:
            is_shared = _share(name, refiner, base, replaces=name == "vae" and config.vae is not None)
            if config.embeddings and not is_shared and name != "vae":
                raise StartupError(f"its {name} is not that of the model, so `embeddings` do not work with it")
        return refiner


def refiner_pipelines(refiner: DiffusionPipeline, family: Family) -> dict[Task, DiffusionPipeline]:
    """Return the pipelines of a refiner by task."""
    return {task: build_pipeline(family.pipelines[task], refiner) for task in TASKS if task in family.pipelines}


def _load(source: ComponentSource, family: Family, dtype: torch.dtype) -> DiffusionPipeline:
    """Load it into main memory, so that the device never has components twice."""
    if source.subfolder or source.weight_name:
        raise StartupError("`subfolder` and `weight_name` are not for a whole model; give its folder or file")
    kind = family.pipelines[Task.IMG2IMG]
    config = ModelConfig(name="refiner", source=source.source, revision=source.revision)
    checkpoint = find_checkpoint(config)
    location = checkpoint or PipelineLocation(source.source, source.revision, None)
    found = family_of(location.index["_class_name"])
    if found is None or found.name != FAMILY:
        raise StartupError(f"{source.source} is a {location.index['_class_name']}, not a Stable Diffusion XL model")
    if checkpoint is not None:
        return checkpoint.load(kind, device="cpu", dtype=dtype)
    assert isinstance(location, PipelineLocation)
    return load_pipeline(kind, location, device="cpu", dtype=dtype)


def _share(name: str, refiner: DiffusionPipeline, base: DiffusionPipeline, *, replaces: bool) -> bool:
    """Let the refiner use a component of the base, and the tokenizer of a text encoder.

    Args:
        replaces: whether it does so even if its own component differs.

    Returns:
        Whether the refiner has no such component of its own now.
    """
    own, other = refiner.components.get(name), base.components.get(name)
    if own is None:
        return True
    if other is None or not (replaces or _is_equal(own, other)):
        return False
    refiner.register_modules(**{name: other})
    if name.startswith("text_encoder"):
        tokenizer = name.replace("text_encoder", "tokenizer")
        # `embeddings` add tokens to it.
        refiner.register_modules(**{tokenizer: base.components[tokenizer]})
    return True


def _is_equal(module: torch.nn.Module, known: torch.nn.Module) -> bool:
    weights, others = module.state_dict(), known.state_dict()
    return weights.keys() == others.keys() and all(
        # Quantised weights are of other types.
        (type(weight), weight.dtype, weight.shape) == (type(other), other.dtype, other.shape)
        and torch.equal(weight, other.to(weight.device))
        for weight, other in ((weight, others[key]) for key, weight in weights.items())
    )
