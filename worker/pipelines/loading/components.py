"""Loads pipelines and the components that a model's configuration lists. Safetensors only, no remote code."""

import inspect
import re
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DDPMScheduler, DiffusionPipeline, ModelMixin, UNet2DConditionModel
from transformers import CLIPTokenizer, PreTrainedModel

from img2img.domain.model_config import ComponentSource

from ...devices import GB, memory_in_words
from ...errors import StartupError
from .default_schedulers import default_scheduler
from .locations import PipelineLocation, component_class, component_folder, components
from .quantization import UNQUANTISED, Quantizer
from .weight_files import check_folder, files_of_variant, has_weights, weight_bytes
from .weightless import add_unknown, build_without_weights, is_in_hub_cache, is_weightless, reading

SCHEDULER_CONFIG = "scheduler_config.json"
# Settings of the low_res_scheduler of stabilityai/stable-diffusion-x4-upscaler.
LOW_RES_SCHEDULER = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
# Components of Stable Diffusion pipelines: `ImageChecker` checks their finished images.
NO_SAFETY_CHECKER = {"safety_checker": None, "requires_safety_checker": False}
# Weights that published files lack and that no forward pass uses.
_UNUSED = re.compile(r"^neck\.fusion_stage\.layers\.0\.residual_layer1\.")
_STATISTICS = re.compile(r"\brunning_(?:mean|var)$")
# Tokenizers without a configured length have 1e30.
_MAX_TOKENS = 2**20
_PROBES = ("a red house by the sea", "old oil paint, 12 dogs")


def load_pipeline(
    kind: type[DiffusionPipeline],
    location: PipelineLocation,
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    variant: str | None = None,
    quantizer: Quantizer = UNQUANTISED,
    **loaded: Any,
) -> DiffusionPipeline:
    """Load a pipeline of a class.

    Args:
        quantizer: quantises components.
        loaded: components to use instead of those of the location.

    Raises:
        StartupError: a file is missing, damaged or in another format, or memory runs out.
    """
    folder = location.folder()
    parameters = inspect.signature(kind.__init__).parameters
    # diffusers requires most of the components that a model_index.json has as null.
    absent = {name: None for name, value in location.index.items() if value == [None, None] and name in parameters}
    off = {name: value for name, value in NO_SAFETY_CHECKER.items() if name in parameters}
    modules: dict[str, Any] = absent | off | loaded
    is_variant = variant is None
    for name, (library, class_name) in components(location.index).items():
        if name in modules or name not in parameters:
            continue
        if name == "scheduler" and not (folder / name / SCHEDULER_CONFIG).is_file():
            modules[name] = default_scheduler(location.index, folder)
            continue
        _check_component(folder, name)
        module = module_class(library, class_name, folder / name)
        if module is not None:
            quantised = quantizer.arguments(name, module)
            modules[name], chosen = _load_module(module, folder / name, dtype, variant, **quantised)
            is_variant |= chosen == variant
    if not is_variant:
        raise StartupError(f"{folder} has no weights of the variant {variant}")
    pipeline: DiffusionPipeline = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, **modules)
    check_tokenizers(pipeline, folder)
    return pipeline.to(device)


def load_pipeline_of(source: ComponentSource, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    """Load a pipeline of the class that its model_index.json names.

    Raises:
        StartupError: if it cannot be loaded.
    """
    location = PipelineLocation(source.source, source.revision, None)
    class_name = location.index["_class_name"]
    kind = getattr(diffusers, class_name, None)
    if kind is None:
        raise StartupError(f"{source.source}: diffusers has no pipeline {class_name}")
    return load_pipeline(kind, location, device=device, dtype=dtype)


def load_component(kind: Any, folder: Path, dtype: torch.dtype, **quantised: Any) -> Any:
    """Load a model of diffusers or transformers from its folder, in the variant that it has.

    Args:
        quantised: arguments of a quantizer.

    Raises:
        StartupError: a file is missing, damaged or in another format.
    """
    return _load_module(kind, folder, dtype, None, **quantised)[0]


def quantise(module: Any, dtype: torch.dtype, **quantised: Any) -> Any:
    """Return the quantised copy of a loaded module.

    diffusers and transformers quantise only what they read from a folder, so the weights are written to one.

    Args:
        quantised: arguments of a quantizer.
    """
    with tempfile.TemporaryDirectory() as folder:
        module.save_pretrained(folder)
        return load_component(type(module), Path(folder), dtype, **quantised)


def load_unet(source: ComponentSource, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """Load a UNet.

    Raises:
        StartupError: if it cannot be loaded.
    """
    folder = component_folder(source)
    class_name = component_class(folder)
    if class_name not in (None, "UNet2DConditionModel"):
        raise StartupError(f"{folder} is a {class_name}, not a UNet2DConditionModel")
    unet: UNet2DConditionModel = load_component(UNet2DConditionModel, folder, dtype)
    return unet.to(device)


def load_low_res_scheduler(source: ComponentSource, levels: int) -> DDPMScheduler:
    """Load the scheduler that adds noise to the low-resolution image of an x4 upscaler.

    Args:
        source: location of the UNet; a folder `low_res_scheduler` in it is used if there is one.
        levels: noise levels of the default scheduler otherwise.

    Raises:
        StartupError: if the folder cannot be loaded.
    """
    folder = Path(source.source).expanduser() / "low_res_scheduler"
    if not folder.is_dir():
        return DDPMScheduler(num_train_timesteps=levels, **LOW_RES_SCHEDULER)
    scheduler: DDPMScheduler = DDPMScheduler.from_pretrained(folder)
    return scheduler


def memory_remedy(folder: Path, dtype: torch.dtype, device: str) -> str:
    """Return how much memory the weights in a folder need, how much the device has, and what to do about it."""
    needed = weight_bytes(folder, dtype.itemsize) / GB
    smaller = "set `dtype` to float16 or bfloat16, or choose" if dtype.itemsize > 2 else "choose"
    return f"it needs about {needed:.1f} GB for weights, {memory_in_words(device)}; {smaller} a smaller model"


def _check_component(folder: Path, name: str) -> None:
    part = folder / name
    if not part.is_dir():
        raise StartupError(f"{folder} has no folder {name}: the download is incomplete; download it again")
    if name.endswith("scheduler") and not (part / SCHEDULER_CONFIG).is_file():
        raise StartupError(f"{part} has no {SCHEDULER_CONFIG}: the download is incomplete; download it again")
    # Without merges a tokenizer loads, and splits all words into letters.
    has_merges = (part / "merges.txt").is_file() or (part / "tokenizer.json").is_file()
    if name.startswith("tokenizer") and (part / "vocab.json").is_file() and not has_merges:
        raise StartupError(f"{part} has no merges.txt: the download is incomplete; download it again")


def module_class(library: str, class_name: str, folder: Path) -> Any:
    """Return the class of a component with weights; None for other components."""
    known = {"diffusers": diffusers, "transformers": transformers}
    source = known.get(library)
    if source is None:
        try:
            source = import_module(f"diffusers.pipelines.{library}")
        except ModuleNotFoundError:
            raise StartupError(f"{folder} is a {library}.{class_name}: code outside of diffusers is not run") from None
    kind = getattr(source, class_name, None)
    if kind is None and (folder / "config.json").is_file():
        raise StartupError(f"{folder} is a {class_name}, which this release of {library} does not have; update it")
    return kind if isinstance(kind, type) and issubclass(kind, ModelMixin | PreTrainedModel) else None


def _load_module(
    kind: Any, folder: Path, dtype: torch.dtype, variant: str | None, **quantised: Any
) -> tuple[Any, str | None]:
    """Load a module of diffusers or transformers whose weights are all in its files. Also return their variant."""
    if not (folder / "config.json").is_file():
        raise StartupError(f"{folder} has no config.json: the download is incomplete; download it again")
    if is_weightless() and is_in_hub_cache(folder) and not has_weights(folder):
        add_unknown()
        return build_without_weights(kind, folder, dtype), variant
    chosen = check_folder(folder, variant)
    with reading(files_of_variant(folder, chosen)):
        if is_weightless():
            return build_without_weights(kind, folder, dtype), chosen
        module, info = kind.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            variant=chosen,
            local_files_only=True,
            output_loading_info=True,
            **quantised,
        )
    # Other buffers have the same values in every model.
    state = {name for name, _ in module.named_parameters()} | {
        name for name, _ in module.named_buffers() if _STATISTICS.search(name)
    }
    missing = sorted(key for key in info["missing_keys"] if key in state and not _UNUSED.search(key))
    if missing:
        # transformers initialises them at random, diffusers leaves them without values.
        raise StartupError(
            f"{folder} lacks {len(missing)} weights of {kind.__name__}, such as {missing[0]}: the files are incomplete "
            "or of another model; download it again"
        )
    return module, chosen


def check_tokenizers(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Check that each tokenizer has the vocabulary of its text encoder. Without one, all prompts are the same.

    Raises:
        StartupError: it has not.
    """
    for name, tokenizer in pipeline.components.items():
        encoder = pipeline.components.get(name.replace("tokenizer", "text_encoder"))
        if not name.startswith("tokenizer") or tokenizer is None or encoder is None:
            continue
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
        where = f"{folder / name}: the files of the tokenizer are incomplete; download it again"
        first, second = (list(tokenizer(probe).input_ids) for probe in _PROBES)
        try:
            expected = encoder.get_input_embeddings().num_embeddings
        except NotImplementedError:
            # Of classes of diffusers.
            continue
        if first == second:
            raise StartupError(f"{where} (all prompts have the same tokens)")
        # Embeddings may be padded to a multiple of a power of 2.
        if len(tokenizer) > expected or len(tokenizer) < expected // 2:
            raise StartupError(f"{where} (it has {len(tokenizer)} tokens, the text encoder has {expected})")
        if isinstance(tokenizer, CLIPTokenizer) and tokenizer.model_max_length > _MAX_TOKENS:
            raise StartupError(f"{where} (tokenizer_config.json has no `model_max_length`)")


def build_pipeline(kind: type[DiffusionPipeline], base: DiffusionPipeline, **components: Any) -> DiffusionPipeline:
    """Build a pipeline of another class from the components and settings of `base`.

    Args:
        components: components to use in place of those of `base`.
    """
    known = {**base.config, **base.components, **components}
    parameters = inspect.signature(kind).parameters
    pipeline: DiffusionPipeline = kind(**{name: known.get(name, p.default) for name, p in parameters.items()})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
