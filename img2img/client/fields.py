"""Fields of requests, as keyword arguments. Generated from the request models by `make client`."""

from collections.abc import Sequence
from typing import Literal, Required, TypedDict

from .images import ImageInput

ControlType = Literal["canny", "depth", "pose", "segmentation", "scribble", "lineart", "softedge", "tile"]

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
    "unipc",
    "deis",
    "lcm",
    "tcd",
    "flow_euler",
    "flow_euler_beta",
    "flow_heun",
]


class ControlFields(TypedDict, total=False):
    """A ControlNet and the map that it follows."""

    scale: float
    """How strongly to follow the map."""
    start: float
    """Share of the steps after which it begins."""
    end: float
    """Share of the steps after which it ends."""
    type: Required[ControlType]
    """One of the `controls` of the model's entry in `GET /models`."""
    image: ImageInput
    """Absent: the request's `image`. It is brought to the size of the result; with `outpaint`, one of the size of
    `image` lies where that lies."""
    preprocess: bool
    """Make the map from the picture; false: the picture is the map already."""


class ImagePromptFields(TypedDict, total=False):
    """A picture that says what to show, as a prompt does (IP-Adapter)."""

    image: Required[ImageInput]
    scale: float
    """How strongly it counts."""


class LoraFields(TypedDict, total=False):
    """Low-rank weights that the model file names, and how strongly they count."""

    name: Required[str]
    scale: float


class PaddingFields(TypedDict, total=False):
    """Pixels that outpainting adds on each side."""

    left: int
    top: int
    right: int
    bottom: int


class WebhookFields(TypedDict, total=False):
    """Where to tell how a job ended."""

    url: Required[str]
    """Gets a signed POST. https only, as a rule."""
    events: Sequence[Literal["job.succeeded", "job.failed", "job.cancelled"]]
    """The ends that are told."""


class SubmitFields(TypedDict, total=False):
    """Fields of `POST /img2img`."""

    image: ImageInput
    """The picture to start from. Only `controls` with pictures of their own can do without."""
    prompt: str
    """What to show; may be empty."""
    negative_prompt: str
    """What not to show."""
    prompt_weighting: bool
    """Read `(text:1.3)` in both prompts as that text with that weight; 1 is the usual. Not nested."""
    strength: float
    """0 keeps the picture as it is, 1 starts from (almost) pure noise. Absent: 0.8; where something is painted anew
    (`mask`, `outpaint`, no `image`), 1; with `upscale`, 0.3, and not taken where one of the model's `upscalers` does
    it."""
    denoising_start: float
    """In the place of `strength`, for SDXL and its refiner: the picture counts as denoised up to this share of the
    schedule, no noise is added, and only the rest is run."""
    guidance_scale: float
    """How strongly to follow the prompt; 1 is off and halves the work. Absent: the model's."""
    num_inference_steps: int
    """Steps of the whole schedule; strength times as many are run. Absent: the model's."""
    scheduler: Scheduler
    """The sampler; absent: the model's default."""
    seed: int
    """Image i uses seed + i; absent: drawn, and reported."""
    num_images: int
    """How many variants to make."""
    width: int
    """Absent: follows from the height, or the model's size nearest in shape."""
    height: int
    """Absent: follows from the width, or the model's size nearest in shape."""
    resize: Resize
    """How the picture is brought to that size: `pad` keeps all of it, with black bars."""
    mask: ImageInput
    """What to paint anew: a picture of the same size, white there and black elsewhere; or `alpha`: where `image` is
    transparent. All else stays bit for bit, and the result has the size of `image`; `width` and `height` are then the
    size at which the model works."""
    mask_blur: int
    """Pixels over which new fades into old, inside the mask. Absent: 4."""
    mask_padding: int
    """Let the model see only what is painted anew and so many pixels around, at its full size, so that small things get
    all its detail. Absent: it sees the whole picture."""
    outpaint: PaddingFields
    """Pixels to add on each side, painted to fit. The picture stays bit for bit."""
    controls: Sequence[ControlFields]
    """Maps that the result follows: edges, depth, segments, ..."""
    image_prompts: Sequence[ImagePromptFields]
    """Pictures whose content or style to take up."""
    instruction: str
    """What to change, as one would say it to a person."""
    image_guidance_scale: float
    """How much of the picture an `instruction` keeps. Absent: 1.5."""
    upscale: Literal[2, 4]
    """How many times wider and higher the result is, one of the model's `upscales`. The picture may have any size."""
    loras: Sequence[LoraFields]
    """Of the `loras` of the model's entry in `GET /models`."""
    model: str
    """One of `GET /models`; absent: the service's default."""
    deadline_s: float
    """Seconds from now; a job that has not ended by then is cancelled."""
    priority: Priority
    """Which jobs go first; within one priority, clients take turns."""
    webhook: WebhookFields | str
    """Where to tell how the job ended, and which ends; a URL alone is told all of them."""


class ControlMapFields(TypedDict, total=False):
    """Fields of `POST /control-maps`."""

    width: int
    """As of `POST /img2img`."""
    height: int
    """As of `POST /img2img`."""
    resize: Resize
    """How the picture is brought to that size."""
    model: str
    """One of `GET /models`; absent: the service's default."""
    deadline_s: float
    """Seconds from now; a job that has not ended by then is cancelled."""
