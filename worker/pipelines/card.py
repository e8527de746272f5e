"""The card of a model: what requests can ask of it."""

from collections.abc import Iterable, Mapping

from diffusers import DiffusionPipeline

from img2img.domain.conditioning import ControlName
from img2img.domain.model_card import ModelCard, size_buckets
from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import DIFFUSION_SCHEDULERS, MAX_CLIP_SKIP, MAX_STEPS, MAX_STEPS_OF, Scheduler, Task

from ..errors import StartupError
from ..images.control_maps import PREPROCESSORS
from .conditioning.controlnets import ControlNets
from .conditioning.denoiser_changes import takes_freeu
from .conditioning.upscalers import Upscaler
from .families import Family
from .generic_jobs import denoisers, latent_scale, patch_size_of
from .parameters import call_parameters, scheduler_parameters, supported_parameters
from .scheduler_defaults import choose_defaults
from .scheduler_kinds import sigmas_of
from .schedulers import has_own_schedule

# Factors of tiled image-to-image upscaling.
TILED_UPSCALES = (2, 4)
# Latents along a side of the square images that most models are trained on, for those that do not declare it.
SAMPLE_SIZE = 128
# Share of the schedule after which a refiner takes over by default: that of the published models.
DENOISING_END = 0.8


def base_card(config: ModelConfig, family: Family, pipeline: DiffusionPipeline) -> ModelCard:
    """Return the card of a model without its optional components."""
    scale = latent_scale(pipeline)
    patch_size = patch_size_of(pipeline) if family.is_generic else family.patch_size
    # Pipelines require multiples of 8, even if the scale factor of the VAE is smaller.
    multiple = max(8, scale * patch_size)
    native = _latent_size(pipeline) * scale
    guidance = family.has_guidance(pipeline) if config.guidance is None else config.guidance
    schedulers = family.schedulers
    if family.schedulers == DIFFUSION_SCHEDULERS and has_own_schedule(pipeline.scheduler):
        schedulers = (*schedulers, Scheduler.MODEL)
    default_scheduler, default_sigmas = choose_defaults(config, family.name, schedulers, pipeline.scheduler)
    _check_defaults(config, default_scheduler, has_guidance=family.has_guidance(pipeline))
    return ModelCard(
        name=config.name,
        description=config.description,
        aliases=config.aliases,
        family=family.name,
        tasks=tuple(family.pipelines),
        native_size=native,
        size_multiple=multiple,
        min_size=native // 2,
        max_size=native * 2,
        sizes=family.sizes or size_buckets(native, multiple),
        schedulers=schedulers,
        default_scheduler=default_scheduler,
        default_sigmas=default_sigmas,
        scheduler_sigmas=sigmas_of(family.schedulers),
        default_steps=config.steps or family.steps,
        default_guidance_scale=(config.guidance_scale or family.guidance_scale) if guidance else 1.0,
        # A negative prompt has no effect without guidance.
        negative_prompt=family.negative_prompt and guidance,
        guidance=guidance,
        guidance_rows=family.guidance_rows,
        scheduler_parameters={
            name: takers
            for name, takers in scheduler_parameters(schedulers).items()
            # What a step of an unknown pipeline does is not known.
            if name != "speed" or not family.is_generic
        },
        guidance_until=guidance and family.conditional is not None,
        prompt_weighting=family.clip_prompts,
        refiner=config.refiner is not None,
        default_denoising_end=(config.denoising_end or DENOISING_END) if config.refiner else None,
        image_guidance=family.image_guidance,
        max_images=family.max_images,
        full_strength=family.full_strength,
        dtype=str(next(denoisers(pipeline)).dtype).removeprefix("torch."),
        revision=config.revision,
    )


def _check_defaults(config: ModelConfig, scheduler: Scheduler, *, has_guidance: bool) -> None:
    """Raise StartupError for defaults that no request could have."""
    if config.guidance is False and (config.guidance_scale or 1) > 1:
        raise StartupError("`guidance_scale` has no effect with `guidance = false`; remove one of them")
    if not has_guidance and (config.guidance or (config.guidance_scale or 1) > 1):
        key = "guidance" if config.guidance else "guidance_scale"
        raise StartupError(f"the model was made to run without guidance; remove `{key}`")
    if (config.steps or 1) > MAX_STEPS_OF.get(scheduler, MAX_STEPS):
        raise StartupError(f"`steps` is at most {MAX_STEPS_OF[scheduler]} with the scheduler {scheduler}")


def component_fields(
    family: Family,
    pipelines: Mapping[Task, DiffusionPipeline],
    pipeline: DiffusionPipeline,
    upscalers: Mapping[int, Upscaler],
    controlnets: ControlNets,
    annotators: tuple[ControlName, ...],
) -> dict[str, object]:
    """Return the fields of the card that depend on the components of a model."""
    has_tiles = Task.IMG2IMG in pipelines and "unet" in pipeline.components and not family.is_generic
    tiled = TILED_UPSCALES if has_tiles else ()
    upscales = sorted({*upscalers, *tiled})
    more = [task for task, supported in ((Task.CONTROL, controlnets.types), (Task.UPSCALE, upscales)) if supported]
    # Tiles are upscaled by the image-to-image pipeline.
    tiles = {Task.UPSCALE: pipelines[Task.IMG2IMG]} if tiled else {}
    return {
        "tasks": (*pipelines, *more),
        "controls": controlnets.types,
        "regions": Task.IMG2IMG in pipelines and family.clip_prompts,
        "mask_content": Task.INPAINT in pipelines and "unet" in pipeline.components,
        # Preprocessors without a model work with every model.
        "preprocessors": (*PREPROCESSORS, *annotators),
        "upscales": tuple(upscales),
        "upscalers": tuple(upscaler.card for upscaler in upscalers.values()),
        "parameters": supported_parameters({**pipelines, **tiles}),
        "control_parameters": supported_parameters(controlnets.pipelines),
    }


def max_clip_skip(pipelines: Iterable[DiffusionPipeline]) -> int:
    """Return the largest `clip_skip` that the text encoders of all pipelines have the layers for."""
    most = [MAX_CLIP_SKIP]
    for pipeline in pipelines:
        if "clip_skip" in call_parameters(pipeline):
            names = ("text_encoder", "text_encoder_2")
            encoders = [encoder for name in names if (encoder := pipeline.components.get(name)) is not None]
            # Pipelines with a second encoder leave out the last layer by themselves.
            own = "text_encoder_2" in pipeline.components
            most += [getattr(encoder.config, "num_hidden_layers", MAX_CLIP_SKIP) - own for encoder in encoders]
    return max(0, min(most))


def with_optional_parameters(
    card: ModelCard,
    config: ModelConfig,
    family: Family,
    pipelines: Mapping[Task, DiffusionPipeline],
    controlled: Mapping[Task, DiffusionPipeline],
    perturbed: Mapping[Task, DiffusionPipeline],
) -> ModelCard:
    """Return the card with the parameters that are not arguments of the pipelines.

    Args:
        controlled: the pipelines for jobs with controls.
        perturbed: those with perturbed-attention guidance.
    """
    parameters, control_parameters = dict(card.parameters), dict(card.control_parameters)
    for takers, parts in ((parameters, pipelines), (control_parameters, controlled)):
        varied = tuple(task for task, pipeline in parts.items() if hasattr(pipeline, "prepare_latents"))
        takers["subseed_strength"] = takers["subseed"] = varied
        # Compiled denoisers cannot be changed.
        if not family.is_generic and config.compile in (None, "off"):
            takers["freeu"] = tuple(task for task, pipeline in parts.items() if takes_freeu(pipeline))
            takers["seamless_tiling"] = tuple(task for task in takers["freeu"] if task in (Task.IMG2IMG, Task.CONTROL))
    if Task.IMG2IMG in parameters.get("freeu", ()) and set(card.upscales) & set(TILED_UPSCALES):
        parameters["freeu"] += (Task.UPSCALE,)
    parameters |= {name: tuple(perturbed) for name in ("pag_scale", "pag_adaptive_scale") if perturbed}
    if family.soft_inpainting and _inpaints_by_img2img(pipelines):
        parameters["soft_inpainting"] = (Task.INPAINT,)
    return card.model_copy(
        update={
            "parameters": {name: tasks for name, tasks in parameters.items() if tasks},
            "control_parameters": {name: tasks for name, tasks in control_parameters.items() if tasks},
        }
    )


def _inpaints_by_img2img(pipelines: Mapping[Task, DiffusionPipeline]) -> bool:
    """Return whether one denoiser is that of both tasks, and not one that takes the mask as input."""
    if not {Task.IMG2IMG, Task.INPAINT} <= pipelines.keys():
        return False
    one, other = (next(denoisers(pipelines[task])) for task in (Task.IMG2IMG, Task.INPAINT))
    return one is other


def _latent_size(pipeline: DiffusionPipeline) -> int:
    """Return the side, in latents, of the square images that the model was trained on."""
    if "unet" in pipeline.components:
        return int(pipeline.unet.config.get("sample_size") or SAMPLE_SIZE)
    return int(getattr(pipeline, "default_sample_size", SAMPLE_SIZE))
