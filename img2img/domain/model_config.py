"""Configuration of models, as in a models.toml file: the weights and components of each, and defaults of requests.

Clients name models, LoRAs and control types; they never name files.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from img2img.domain.conditioning import ControlName, EmbeddingName, LoraName
from img2img.domain.masks import MaskKind
from img2img.domain.model_card import SafetyChecker
from img2img.domain.parameters import Scheduler, Sigmas
from img2img.domain.text_forms import Matches

ModelName = Annotated[
    str,
    Matches(
        r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$",
        "1 to 200 letters, digits and characters of ._/-, the first one a letter or digit",
    ),
]


class ComponentSource(BaseModel):
    """Location of weights. Safetensors only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Annotated[
        str,
        Field(description="folder or file, relative to the model file if it starts with a dot, or a hub id; required"),
    ]
    revision: Annotated[str | None, Field(description="revision of the hub repository; default: the latest")] = None
    subfolder: Annotated[str | None, Field(description="folder within the source")] = None
    weight_name: Annotated[str | None, Field(description="file name, for a source with several files")] = None


class ControlNetSource(ComponentSource):
    """Location of a ControlNet."""

    mode: Annotated[
        int | None,
        Field(
            ge=0, description="control mode of a union ControlNet; default: by the control type; only in `controlnets`"
        ),
    ] = None


class MattingSource(ComponentSource):
    """Location of a model that finds the foreground."""

    foreground: Annotated[
        tuple[str | int, ...],
        Field(description="list of names or numbers of its classes; default: all but `background`; only in `matting`"),
    ] = ()


class UpscalerSource(ComponentSource):
    """Location of an upscaler, with the defaults of requests that use it."""

    steps: Annotated[
        int | None, Field(ge=1, le=150, description="default of upscaling requests, 1 to 150; only in `upscale`")
    ] = None
    guidance_scale: Annotated[
        float | None, Field(ge=1, description="default of upscaling requests, at least 1; only in `upscale`")
    ] = None


def _expand(value: object) -> object:
    """Expand the short form `"folder"` to `{ source = "folder" }`."""
    if isinstance(value, ComponentSource):
        return value.model_dump(exclude_unset=True)
    return {"source": value} if isinstance(value, str) else value


def _for_all(value: object) -> object:
    """Expand the short form `"int8"` to `{ "*" = "int8" }`."""
    return {ALL: value} if isinstance(value, str) else value


Component = Annotated[ComponentSource, BeforeValidator(_expand, json_schema_input_type=str | ComponentSource)]
Upscaler = Annotated[UpscalerSource, BeforeValidator(_expand, json_schema_input_type=str | UpscalerSource)]
# Key of `quantize` for the components that it does not name.
ALL = "*"
Quantization = Literal["int8", "fp8", "int4", "nf4"]
Offload = Literal["none", "model", "group", "layers"]
UpscaleFactor = Annotated[int, Field(ge=2, le=4)]


class ModelConfig(BaseModel):
    """Configuration of one model: its weights, optional components and defaults of requests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Name that clients use: the key of the table.
    name: str = ""
    source: Annotated[
        str,
        Field(
            description="folder in diffusers format (with a `model_index.json` or `modular_model_index.json`), hub id, "
            "safetensors or GGUF file, or such a file on the hub (`org/name/file.safetensors`); required"
        ),
    ]
    description: Annotated[
        str,
        Field(
            max_length=1000,
            description="text for clients: what the model makes, and what it was trained on; default: empty",
        ),
    ] = ""
    aliases: Annotated[
        tuple[ModelName, ...],
        Field(
            description="list of other names that requests can give, such as `gpt-image-1`; default: none. The name of "
            "another model takes precedence"
        ),
    ] = ()
    revision: Annotated[str | None, Field(description="revision of the hub repository; default: the latest")] = None
    variant: Annotated[str | None, Field(description="variant of the weight files, such as `fp16`")] = None
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        Field(
            description="`float32`, `float16` or `bfloat16`; default: `IMG2IMG_DTYPE`, or `float16` on CUDA "
            "(`bfloat16` for families that need it), else `float32`"
        ),
    ] = None
    compile: Annotated[
        Literal["off", "regional", "full"] | None,
        Field(
            description="`regional`: the repeated blocks of the denoiser are compiled; `full`: all of it, with a "
            "longer start; default: `IMG2IMG_COMPILE`, else `off`"
        ),
    ] = None
    compile_sizes: Annotated[
        tuple[tuple[int, int], ...],
        Field(
            description="list of `[width, height]`: sizes of images for which it is compiled, others run eagerly; "
            "default: the native size"
        ),
    ] = ()
    channels_last: Annotated[
        bool,
        Field(
            description="`true`: weights of convolutions have their channels last, which is faster on GPUs in 16 bit, "
            "and for the VAE in `bfloat16` on a CPU; default: `false`"
        ),
    ] = False
    attention: Annotated[
        str | None,
        Field(
            description="attention backend of diffusers for the denoiser, such as `flash`, `_flash_3` or `sage`, which "
            "needs its package; not for UNets; default: that of PyTorch"
        ),
    ] = None
    quantize: Annotated[
        dict[str, Quantization],
        BeforeValidator(_for_all, json_schema_input_type=Quantization | dict[str, Quantization]),
        Field(
            description="`int8`, `fp8`, `int4` or `nf4`: weights of the denoiser and the text encoders in 8 or 4 bits; "
            "or a table: component, or `*` for the others -> one of them",
        ),
        # Generators of clients cannot declare `{}` as the default of a union; a factory is no part of the schema.
    ] = Field(default_factory=dict)
    offload: Annotated[
        Offload,
        Field(
            description="`model`, `group` or `layers`: weights are in main memory, and on the device only while they "
            "are used; default: `none`"
        ),
    ] = "none"
    offload_folder: Annotated[
        Path | None,
        Field(
            description="folder, relative to the model file: weights are there instead of in main memory; for `group` "
            "and `layers`"
        ),
    ] = None
    vae_tiling: Annotated[
        bool | Literal["auto"],
        Field(
            description="`true`: the VAE works on overlapping tiles, with less memory and slightly other pixels; "
            "`auto`: for images of more than 2 megapixels; default: `false`"
        ),
    ] = False
    vae_slicing: Annotated[
        bool,
        Field(
            description="`true`: the VAE works on the images of a batch one by one, with less memory; default: `false`"
        ),
    ] = False
    step_tables: Annotated[
        bool,
        Field(
            description="`true`: the steps of schedulers are calculated from tables of numbers, with less work for the "
            "processor between the calls of a GPU and slightly other pixels; default: `false`"
        ),
    ] = False
    config: Annotated[
        Component | None,
        Field(
            description="part: a model in diffusers format that has the configurations, the tokenizers and the "
            "components that a single file lacks, or another single file that has these components; Stable Diffusion "
            "and FLUX.1 need none"
        ),
    ] = None
    prediction_type: Annotated[
        Literal["epsilon", "v_prediction"] | None,
        Field(description="`epsilon` or `v_prediction`; default: of the model"),
    ] = None
    pipeline: Annotated[
        str | None,
        Field(
            description="class of the pipeline, for a single file whose weights are those of another class too, such "
            "as `FluxKontextPipeline`; default: by the weights"
        ),
    ] = None
    text_encoders: Annotated[
        tuple[Component, ...],
        Field(
            description="list of parts: CLIP and T5 text encoders in single files, for a single file that lacks them; "
            "which is which is seen from the weights"
        ),
    ] = ()
    vae: Annotated[
        Component | None, Field(description="part: the VAE, a folder or a file; default: that of the model")
    ] = None
    fast_vae: Annotated[
        Component | None,
        Field(
            description="part: a small VAE of the class `AutoencoderTiny`, such as TAESD, for requests with "
            "`fast_vae`; a folder or hub id"
        ),
    ] = None
    controlnets: Annotated[
        dict[
            ControlName,
            Annotated[ControlNetSource, BeforeValidator(_expand, json_schema_input_type=str | ControlNetSource)],
        ],
        Field(description="table: control type, any name -> part, which also takes `mode`; a folder or a file"),
    ] = {}
    preprocessors: Annotated[
        dict[ControlName, Component],
        Field(
            description="table: `depth`, `normal`, `pose` or `segmentation` -> part, a transformers model that "
            "computes the map; `person` -> part, the detector of the people whose poses are drawn"
        ),
    ] = {}
    matting: Annotated[
        Annotated[MattingSource, BeforeValidator(_expand, json_schema_input_type=str | MattingSource)] | None,
        Field(
            description="part, which also takes `foreground`: a transformers model of semantic segmentation that finds "
            "the foreground, for requests with `background`"
        ),
    ] = None
    matting_refiner: Annotated[
        Component | None, Field(description="part: a ViTMatte model, for exact edges of `matting`")
    ] = None
    segmenters: Annotated[
        dict[MaskKind, Component],
        Field(
            description="table: `text` -> part, a transformers model that finds what words name: CLIPSeg, Grounding "
            "DINO, SAM 3, or a model of semantic segmentation or object detection with names of its classes; `points` "
            "-> part, SAM, SAM 2 or the tracker of SAM 3, which outlines things by points and boxes"
        ),
    ] = {}
    ip_adapter: Annotated[Component | None, Field(description="part: an IP-Adapter, or FLUX.1 Redux")] = None
    image_encoder: Annotated[
        Component | None,
        Field(
            description="part: the CLIP image encoder of the IP-Adapter; default: `image_encoder` next to the adapter "
            "file"
        ),
    ] = None
    loras: Annotated[dict[LoraName, Component], Field(description="table: name -> part")] = {}
    lora_folder: Annotated[
        str | None,
        Field(
            description="folder whose safetensors files are LoRAs, named by their file names without the suffix, such "
            "as `My Style v2`, with hyphens for characters other than A-Z a-z 0-9 space . _ - ( ) +; files that are "
            "added and removed later are followed. An entry of `loras` takes precedence"
        ),
    ] = None
    embeddings: Annotated[
        dict[EmbeddingName, Component], Field(description="table: name in prompts -> part, a textual inversion")
    ] = {}
    inpaint: Annotated[
        Component | None,
        Field(
            description="part: a pipeline or UNet with 9 input channels, a folder or a file, used for inpainting; "
            "a file with the first convolution of a UNet alone shares the model's other weights; "
            "default: the model itself"
        ),
    ] = None
    edit: Annotated[
        Component | None,
        Field(
            description="part: a pipeline or UNet with 8 input channels (InstructPix2Pix), a folder or a file; a file "
            "with the first convolution of a UNet alone shares the model's other weights"
        ),
    ] = None
    upscale: Annotated[
        dict[UpscaleFactor, Upscaler],
        Field(description="table: factor (2 or 4) -> part, which also takes `steps` and `guidance_scale`"),
    ] = {}
    refiner: Annotated[
        Component | None,
        Field(
            description="part: a second Stable Diffusion XL model, a folder, hub id or file, that runs the last steps "
            "of image-to-image and inpainting"
        ),
    ] = None
    denoising_end: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="default of requests, between 0 and 1: the share of the schedule after which the refiner takes "
            "over; default: 0.8",
        ),
    ] = None
    steps: Annotated[
        int | None, Field(ge=1, le=150, description="default of requests, 1 to 150; default: of the family, usually 30")
    ] = None
    guidance_scale: Annotated[
        float | None,
        Field(ge=1, description="default of requests, at least 1; default: of the model family, usually 7.5"),
    ] = None
    scheduler: Annotated[
        Scheduler | None, Field(description="default of requests; default: the scheduler of the model")
    ] = None
    sigmas: Annotated[
        Sigmas | None, Field(description="default of requests that name no scheduler; default: those of the scheduler")
    ] = None
    safety_checker: Annotated[
        SafetyChecker | None,
        Field(
            description="`on`: images that the safety checker flags are withheld; `report`: they are delivered and "
            "marked; `off`: it is not loaded; default: `on` if the model has a checker, else `off`"
        ),
    ] = None
    safety_checker_source: Annotated[
        Component | None,
        Field(
            description="part: the safety checker, a `StableDiffusionSafetyChecker`, for a model without one; it works "
            "with models of every family; default: that of the model"
        ),
    ] = None
    guidance: Annotated[
        bool | None,
        Field(
            description="`false` for models made to run without guidance (turbo and lightning models): requests cannot "
            "enable it"
        ),
    ] = None

    def components(self) -> Iterator[tuple[str, ComponentSource]]:
        """Yield each component of the model with its key."""
        for name in ModelConfig.model_fields:
            value = getattr(self, name)
            if isinstance(value, tuple):
                value = dict(enumerate(value))
            items = {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
            yield from ((key, item) for key, item in items.items() if isinstance(item, ComponentSource))

    def sources(self) -> Iterator[tuple[str, str]]:
        """Yield each source of the model with its key."""
        yield "source", self.source
        yield from ((key, component.source) for key, component in self.components())
        if self.lora_folder is not None:
            yield "lora_folder", self.lora_folder

    def with_sources(self, replace: Callable[[str, str], str]) -> Self:
        """Return the configuration with other sources.

        Args:
            replace: gets the key and the value of a source, and returns its new value.
        """

        def replaced(key: str, value: object) -> object:
            if isinstance(value, ComponentSource):
                return value.model_copy(update={"source": replace(key, value.source)})
            if isinstance(value, dict):
                return {name: replaced(f"{key}.{name}", item) for name, item in value.items()}
            if isinstance(value, tuple):
                return tuple(replaced(f"{key}.{index}", item) for index, item in enumerate(value))
            return value

        changes = {name: replaced(name, getattr(self, name)) for name in ModelConfig.model_fields}
        folder = {"lora_folder": replace("lora_folder", self.lora_folder)} if self.lora_folder is not None else {}
        return self.model_copy(update={**changes, "source": replace("source", self.source), **folder})
