"""Fields of requests, as keyword arguments. Generated from the request models by `make client`."""

from collections.abc import Mapping, Sequence
from typing import Literal, Required, TypedDict

from .images import ImageInput

Background = Literal["keep", "transparent"]

DeadlinePolicy = Literal["cancel", "best_effort", "reject"]

MaskContent = Literal["original", "noise", "nothing"]

Priority = Literal["low", "normal", "high"]

Resize = Literal["crop", "pad", "stretch"]

Scheduler = Literal[
    "ddim",
    "ddpm",
    "pndm",
    "lms",
    "euler",
    "euler_a",
    "heun",
    "dpmpp_2m",
    "dpmpp_2m_karras",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "dpmpp_2s",
    "dpmpp_2s_a",
    "dpm2",
    "dpm2_a",
    "unipc",
    "deis",
    "lcm",
    "tcd",
    "flow_euler",
    "flow_euler_beta",
    "flow_heun",
    "model",
]

Sigmas = Literal["karras", "exponential", "beta", "normal", "simple", "sgm_uniform", "ddim_uniform"]

Speed = Literal["exact", "fast", "turbo"]

WeightingMethod = Literal["compel", "a1111"]


class BackgroundFields(TypedDict, total=False):
    """A new background for `image`."""

    prompt: Required[str]
    """Prompt of the new background."""


class ControlFields(TypedDict, total=False):
    """A control map that a ControlNet follows."""

    scale: float
    """How strongly the result follows the control map."""
    start: float
    """Share of the steps after which the control begins."""
    end: float
    """Share of the steps after which the control ends."""
    type: Required[str]
    """One of the `controls` of the model's entry in `GET /models`."""
    image: ImageInput
    """Default: the request's `image`. The image is resized to the size of the result. With `outpaint`, an image of the
    size of `image` gets the same margins."""
    preprocess: bool
    """Make the control map from the image. If false, the image is the control map."""


class FreeUFields(TypedDict, total=False):
    """Factors of FreeU (Si et al., 2023) for the two stages of a UNet's decoder with the fewest pixels."""

    b1: Required[float]
    """Of the features of the first stage, such as 1.3."""
    b2: Required[float]
    """Of the features of the second stage, such as 1.4."""
    s1: Required[float]
    """Of the low frequencies that skip to the first stage: 0.9."""
    s2: Required[float]
    """Of the low frequencies that skip to the second stage: 0.2."""


class ImagePromptFields(TypedDict, total=False):
    """An image whose content the result should take up (IP-Adapter)."""

    image: Required[ImageInput]
    scale: float
    """How strongly the result follows the image."""
    blocks: Mapping[str, float | Sequence[float] | Mapping[str, float | Sequence[float]]]
    """Scales of the blocks of the UNet in place of `scale`, as `set_ip_adapter_scale` of diffusers takes them, for
    `image_prompt_blocks` of the model. Blocks that are not named get 0."""


class LoraFields(TypedDict, total=False):
    """A LoRA of the model, and how strongly it is applied."""

    name: Required[str]
    scale: float


class MaskFields(TypedDict, total=False):
    """The thing in the image that is masked: named by `text`, by `points` or by a `box`."""

    text: str
    """Words that name the thing, such as `the house`; several things are separated by commas."""
    points: Sequence[Sequence[float]]
    """Points `[x, y]` in the thing."""
    labels: Sequence[int]
    """One number for each point: 1 is in the thing, 0 is outside of it. Default: all are in it."""
    box: Sequence[float]
    """`[left, top, right, bottom]` of a box around the thing."""
    grow: int
    """Pixels by which the mask is made larger on all sides; smaller if negative."""
    invert: bool
    """Take all but the thing, such as its background."""
    threshold: float
    """Lowest confidence of what is found by `text`. Default: 0.3; 0.4 for pixels of CLIPSeg."""
    blur: int
    """The same as `mask_blur`."""


class PaddingFields(TypedDict, total=False):
    """Pixels that outpainting adds on each side."""

    left: int
    top: int
    right: int
    bottom: int


class RefineFields(TypedDict, total=False):
    """Parts of the result that are found by words, and generated again at the native size of the model."""

    detect: Required[str]
    """Words for the parts, as in a mask by `text`; several are separated by commas."""
    strength: float
    """How much of each part is replaced: 1 starts from pure noise."""
    prompt: str
    """What each part should show. Default: `prompt`."""
    negative_prompt: str
    """What no part should show. Default: `negative_prompt`."""
    num_inference_steps: int
    """Steps of the whole schedule. Default: those of the request."""
    padding: int
    """Pixels around a part that the model sees with it."""
    blur: int
    """Pixels over which a part fades into the rest, inside its mask."""
    grow: int
    """Pixels by which the mask of a part is made larger."""
    threshold: float
    """Lowest confidence of a part, as in a mask by `text`."""
    max: int
    """Largest number of parts; the most certain are taken."""


class RegionFields(TypedDict, total=False):
    """A part of the image with a separate prompt."""

    mask: Required[ImageInput | MaskFields]
    """White where the prompt acts, and grey where it acts in part. Resized like `image`."""
    prompt: Required[str]
    """Prompt of this part."""
    weight: float
    """Share of this prompt where the mask is white; the rest is that of `prompt`."""


class WebhookFields(TypedDict, total=False):
    """URL that receives an event when the job ends."""

    url: Required[str]
    """URL that receives a signed POST request. Must be https, unless private addresses are allowed."""
    events: Sequence[Literal["job.succeeded", "job.failed", "job.cancelled"]]
    """Events to send."""


class TaskFields(TypedDict, total=False):
    """Fields of `POST /img2img`, besides those that select the task."""

    prompt: str
    """What the result should show; may be empty."""
    negative_prompt: str
    """What the result should not show."""
    prompt_weighting: bool
    r"""Read `(text:1.3)` in both prompts as that text with that weight, `BREAK` as the begin of a new chunk of 77
    tokens, and `\(` as a bracket. The default weight is 1; weights cannot be nested."""
    weighting_method: WeightingMethod
    """Arithmetic of weights and of long prompts. `compel`: a weight scales the difference from an empty prompt.
    `a1111`: that of the AUTOMATIC1111 web UI, with chunks of 75 tokens that end at a comma."""
    clip_skip: int
    """Layers of the CLIP text encoder to skip for `prompt`: 1 is `Clip skip: 2` of the AUTOMATIC1111 web UI. For models
    with `clip_skip` in `parameters`."""
    denoising_start: float
    """Replaces `strength` for SDXL and its refiner: the image counts as denoised up to this share of the schedule. No
    noise is added, and only the rest of the steps is run."""
    eta: float
    """Noise that the scheduler adds at each step: 0 is deterministic DDIM, 1 is like DDPM. For the schedulers in
    `scheduler_parameters` of the model's entry in `GET /models`."""
    guidance_rescale: float
    """Rescales the guided prediction to reduce overexposure: 0 is off, 0.7 is usual (https://arxiv.org/abs/2305.08891,
    section 3.4). For models with `guidance_rescale` in `parameters`."""
    speed: Speed
    """`fast` and `turbo` predict some outputs of the denoiser from earlier ones and skip these calls: about 2.0 and 2.4
    times fewer calls at 30 steps, with a result that differs a little. For the schedulers in `scheduler_parameters` of
    the model's entry in `GET /models`."""
    guidance_until: float
    """Share of the steps that run with guidance: the others, at the end, run without it, which halves their work. For
    models with `guidance_until` in `GET /models`."""
    fast_vae: bool
    """Encode and decode with the small VAE of the model (TAESD): faster, with slightly other details. For models with
    `fast_vae` in `GET /models`."""
    deterministic: bool
    """Make the same image to the last bit whatever other jobs the worker runs: the calls of the model are not merged
    with those of other jobs, which takes longer on a busy worker."""
    guess_mode: bool
    """Let `controls` act in the prediction with the prompt only, which makes them stronger than the prompt: `ControlNet
    is more important` of the AUTOMATIC1111 web UI. For models with `guess_mode` in `control_parameters`."""
    background: Background | BackgroundFields
    """`transparent` makes the background of the result transparent: the PNG has an alpha channel, and so has its
    conversion to WebP. An object with a `prompt` keeps the foreground of `image`, and inpaints the rest. For models
    with `matting` in `GET /models`."""
    exact_steps: bool
    """Run `num_inference_steps` steps at any `strength`, of a schedule that is longer in proportion. Without it, about
    `strength` times as many are run."""
    subseed_strength: float
    """Share of the noise of `subseed` in the initial noise: small values give variations of the image of `seed`. Image
    i then uses `seed` and subseed + i."""
    freeu: FreeUFields
    """Scale parts of the UNet's features for more detail (FreeU, arXiv 2309.11497)."""
    pag_scale: float
    """Scale of perturbed-attention guidance (https://arxiv.org/abs/2403.17377): 0 is off, 3 is usual. Each step takes
    half as long again, and is not shared with other jobs."""
    pag_adaptive_scale: float
    """By how much `pag_scale` is less for each timestep that the noise is from its largest: 0 keeps it the same in all
    steps."""
    seamless_tiling: bool
    """Let opposite edges of the result fit each other, so that it can be repeated as a texture. For models with
    `seamless_tiling` in `parameters`."""
    num_images: int
    """How many variants to make."""
    loras: Sequence[LoraFields]
    """LoRAs to apply, from `loras` of the model's entry in `GET /models`."""
    strength: float
    """How much of the image is replaced: 0 returns the image, 1 starts from (almost) pure noise. Default: 0.8; with
    `mask` or `outpaint` 1; with `upscale` 0.3. Refused if one of the model's `upscalers` makes the result."""
    guidance_scale: float
    """How strongly the result follows the prompt. 1 turns guidance off and halves the work. Default: the model's."""
    num_inference_steps: int
    """Steps of the whole schedule; about `strength` times as many are run. Default: the model's."""
    scheduler: Scheduler
    """The sampler. Default: the model's."""
    sigmas: Sigmas
    """Noise levels of the steps (schedule type): one of those that the model's entry in `GET /models` lists for the
    scheduler in `scheduler_sigmas`. Default: those of the scheduler itself, or without `scheduler` the model's."""
    seed: int
    """Image i uses seed + i. Default, and with -1: random, and reported in the job."""
    subseed: int
    """Seed of a variation of the image of `seed`, with a `subseed_strength`. Default, and with -1: random, and reported
    in the job."""
    denoising_end: float
    """For models with a `refiner`: the share of the schedule after which it takes over, by default
    `default_denoising_end` of the model. 1: it is not used."""
    width: int
    """Width of the result. Default: derived from `height`, or the nearest bucket of the model."""
    height: int
    """Height of the result. Default: derived from `width`, or the nearest bucket of the model."""
    resize: Resize
    """How images are brought to the size of the result: `crop` cuts, `pad` adds black bars, `stretch` changes the
    aspect ratio."""
    mask_blur: int
    """Pixels over which the new content fades into the old, inside the mask, at most half the thickness of the mask.
    Default: 4."""
    mask_content: MaskContent
    """What the masked part holds before noise is added, below strength 1: the image, latents of noise, or latents of
    zeros."""
    soft_inpainting: bool
    """Read grey of the mask, and its blur, as how much is regenerated (differential diffusion): darker parts change in
    fewer steps. For models with `soft_inpainting` in `parameters`."""
    mask_padding: int
    """Crops the model's view to the regenerated area plus this many pixels on each side, so that small areas are
    generated at the model's full resolution. Default: the model sees the whole image."""
    controls: Sequence[ControlFields]
    """Control maps (edges, depth, segmentation, ...) that the result follows (ControlNet)."""
    regions: Sequence[RegionFields]
    """Parts of the image with separate prompts: each step mixes the predictions for all prompts by the masks. `prompt`
    acts on the rest. For models with `regions` in `GET /models`."""
    image_prompts: Sequence[ImagePromptFields]
    """Images whose content or style the result should take up (IP-Adapter)."""
    refine: Sequence[RefineFields]
    """Detail pass: parts of the result that are found by words, such as faces, and generated again at the native size
    of the model. For models with inpainting and `masks` by `text` in `GET /models`."""
    images: Sequence[ImageInput]
    """Images that `instruction` refers to, after `image` or instead of it; the result has the size of the first. The
    model's `max_images` is the number of all of them."""
    image_guidance_scale: float
    """How closely the result of an `instruction` follows `image`. Default: 1.5."""
    model: str
    """One of `GET /models`. Default: the service's default model."""
    deadline_s: float
    """Seconds from now by which the job should have ended. Jobs with an earlier deadline go first among those of one
    API key and priority, in the queue and in the worker."""
    deadline_policy: DeadlinePolicy
    """What happens at the deadline: `cancel` cancels a job that has not ended; with `best_effort` it goes on, and
    `deadline_missed` is set; `reject` is `cancel`, and refuses a request whose ETA is later."""
    priority: Priority
    """Order in the queue. Jobs of one priority are taken round-robin across API keys. `high` needs an API key with the
    scope `priority`."""
    reuse: bool
    """If an earlier job of yours had the same image, parameters and model, with all defaults resolved, end at once with
    a copy of its images, and name it in `reused_from`. Needs a `seed`."""
    webhook: WebhookFields | str
    """URL that is called when the job ends, and the events to send; all events if only a URL."""


class InpaintFields(TaskFields, total=False):
    """Fields of `POST /img2img` besides the arguments of `inpaint`."""

    outpaint: PaddingFields
    """Pixels to add on each side (outpainting). The pixels of `image` are returned unchanged."""


class OutpaintFields(TaskFields, total=False):
    """Fields of `POST /img2img` besides the arguments of `outpaint`."""

    mask: ImageInput | MaskFields
    """Inpainting mask of the same size as `image`: white pixels are regenerated, black and transparent pixels are
    returned unchanged. Grey counts as white from 128 on, unless the inpainting is soft. `alpha` regenerates the
    transparent pixels of `image`. An object such as `{"text": "the house"}` lets the model find the mask, see `masks`
    of its entry in `GET /models`. The result has the size of `image`; `width` and `height` set the size at which the
    model works."""


class SubmitFields(TaskFields, total=False):
    """Fields of `POST /img2img`."""

    image: ImageInput
    """Input image. Required unless every control has an image."""
    mask: ImageInput | MaskFields
    """Inpainting mask of the same size as `image`: white pixels are regenerated, black and transparent pixels are
    returned unchanged. Grey counts as white from 128 on, unless the inpainting is soft. `alpha` regenerates the
    transparent pixels of `image`. An object such as `{"text": "the house"}` lets the model find the mask, see `masks`
    of its entry in `GET /models`. The result has the size of `image`; `width` and `height` set the size at which the
    model works."""
    outpaint: PaddingFields
    """Pixels to add on each side (outpainting). The pixels of `image` are returned unchanged."""
    instruction: str
    """Edit instruction, such as `make it night`, for models with the task `edit`."""
    upscale: Literal[2, 4]
    """How many times wider and higher the result is than `image`: one of the model's `upscales`. The image may have any
    size."""


class BatchItemFields(SubmitFields, total=False):
    """Fields of `POST /img2img`, and a name, for `POST /batches`."""

    name: str


class ControlMapFields(TypedDict, total=False):
    """Fields of `POST /control-maps`."""

    width: int
    """Width of the result. Default: derived from `height`, or the nearest bucket of the model."""
    height: int
    """Height of the result. Default: derived from `width`, or the nearest bucket of the model."""
    resize: Resize
    """How the image is brought to that size."""
    model: str
    """One of `GET /models`. Default: the service's default model."""
    deadline_s: float
    """Seconds from now by which the job should have ended. Jobs with an earlier deadline go first among those of one
    API key and priority, in the queue and in the worker."""
    deadline_policy: DeadlinePolicy
    """What happens at the deadline: `cancel` cancels a job that has not ended; with `best_effort` it goes on, and
    `deadline_missed` is set; `reject` is `cancel`, and refuses a request whose ETA is later."""


class FindMaskFields(TypedDict, total=False):
    """Fields of `POST /masks`."""

    text: str
    """Words that name the thing, such as `the house`; several things are separated by commas."""
    points: Sequence[Sequence[float]]
    """Points `[x, y]` in the thing."""
    labels: Sequence[int]
    """One number for each point: 1 is in the thing, 0 is outside of it. Default: all are in it."""
    box: Sequence[float]
    """`[left, top, right, bottom]` of a box around the thing."""
    grow: int
    """Pixels by which the mask is made larger on all sides; smaller if negative."""
    invert: bool
    """Take all but the thing, such as its background."""
    threshold: float
    """Lowest confidence of what is found by `text`. Default: 0.3; 0.4 for pixels of CLIPSeg."""
    model: str
    """One of `GET /models`. Default: the service's default model."""
    deadline_s: float
    """Seconds from now by which the job should have ended. Jobs with an earlier deadline go first among those of one
    API key and priority, in the queue and in the worker."""
    deadline_policy: DeadlinePolicy
    """What happens at the deadline: `cancel` cancels a job that has not ended; with `best_effort` it goes on, and
    `deadline_missed` is set; `reject` is `cancel`, and refuses a request whose ETA is later."""
