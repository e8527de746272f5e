"""What an image needs that can be made before its turn, on another thread than the engine's."""

from collections.abc import Hashable
from dataclasses import dataclass

from diffusers import DiffusionPipeline

from img2img.domain.parameters import Task
from img2img.domain.spec import DenoisingSpec, Img2ImgSpec, UpscaleSpec

from ..images.inputs import Inputs
from .conditioning.prompt_embeddings import is_long
from .job_noise import JobGenerator
from .model import Model

# Fields of a spec on which the noise of a job does not depend in number and shape.
_OTHER_FIELDS = {"seed", "prompt", "negative_prompt", "instruction", "image"}


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


def prepare(model: Model, spec: DenoisingSpec, inputs: Inputs, seed: int) -> PreparedJob:
    """Prepare one image, with a CPU generator for `seed`."""
    # An image is upscaled by image-to-image of its enlarged tiles, unless an upscaler model does it.
    task = Task.IMG2IMG if isinstance(spec, UpscaleSpec) else spec.task
    controls = bool(spec.control_maps)
    pipeline = model.pipeline(task, spec.scheduler, spec.sigmas, controls=controls, fast_vae=spec.fast_vae)
    regions = [region.prompt for region in spec.regions] if isinstance(spec, Img2ImgSpec) else []
    prompts = [model.embeddings.expand(prompt) for prompt in (spec.prompt, spec.negative_prompt, *regions)]
    images = [image for image in (inputs.image, inputs.mask) if image is not None]
    model.preparation.prepare(pipeline, prompts, images)
    kind = type(pipeline), spec.model_dump_json(exclude=_OTHER_FIELDS)
    has_long_prompt = model.family.clip_prompts and is_long(pipeline, prompts)
    return PreparedJob(kind, pipeline, model.preparation.generator(kind, seed), has_long_prompt)
