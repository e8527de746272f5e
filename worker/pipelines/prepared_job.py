"""What an image needs that can be made before its turn, on another thread than the engine's."""

from collections.abc import Hashable
from dataclasses import dataclass

from diffusers import DiffusionPipeline

from img2img.domain.parameters import Task
from img2img.domain.spec import DenoisingSpec, Img2ImgSpec, InpaintSpec, UpscaleSpec

from ..images.inputs import Inputs
from .conditioning.prompt_embeddings import is_long
from .job_noise import JobGenerator, vary_latents
from .model import Model

# Fields of a spec on which the noise of a job does not depend in number and shape.
_OTHER_FIELDS = {"seed", "subseed", "prompt", "negative_prompt", "instruction", "image"}


@dataclass(frozen=True)
class PreparedJob:
    """The prepared parts of one image.

    Attributes:
        kind: jobs of a kind draw the same amounts of noise.
        pipeline: pipeline object with a scheduler of its own.
        has_long_prompt: whether a prompt has more tokens than a text encoder takes.
    """

    kind: Hashable
    pipeline: DiffusionPipeline
    generator: JobGenerator
    has_long_prompt: bool


def prepare(model: Model, spec: DenoisingSpec, inputs: Inputs, seed: int, subseed: int | None = None) -> PreparedJob:
    """Prepare one image, with a CPU generator for `seed`.

    Args:
        subseed: seed of the variation; None: the image is not a variation.
    """
    # An image is upscaled by image-to-image of its enlarged tiles, unless an upscaler model does it.
    is_img2img = isinstance(spec, UpscaleSpec) or (isinstance(spec, InpaintSpec) and spec.region.is_soft)
    task = Task.IMG2IMG if is_img2img else spec.task
    pipeline = model.pipeline(
        task,
        spec.scheduler,
        spec.sigmas,
        controls=bool(spec.control_maps),
        fast_vae=spec.fast_vae,
        perturbed=spec.pag_scale > 0,
    )
    regions = [region.prompt for region in spec.regions] if isinstance(spec, Img2ImgSpec) else []
    prompts = [model.embeddings.expand(prompt) for prompt in (spec.prompt, spec.negative_prompt, *regions)]
    images = [image for image in (inputs.image, inputs.mask) if image is not None]
    model.preparation.prepare(pipeline, prompts, images)
    kind = type(pipeline), spec.model_dump_json(exclude=_OTHER_FIELDS)
    has_long_prompt = model.family.clip_prompts and is_long(pipeline, prompts)
    generator = model.preparation.generator(kind, seed)
    if subseed is not None:
        generator.vary(subseed, spec.subseed_strength)
        vary_latents(pipeline, generator)
    return PreparedJob(kind, pipeline, generator, has_long_prompt)
