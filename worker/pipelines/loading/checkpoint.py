"""Checkpoints in single files: a whole model, or its denoiser, with the keys of the original implementation.

diffusers converts the weights. Configurations and tokenizers come from this package, or from the `config` of the model.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, GGUFQuantizationConfig
from diffusers.loaders import single_file_utils
from diffusers.loaders.single_file import load_single_file_sub_model

from img2img.domain.model_card import is_path
from img2img.domain.model_config import ComponentSource, ModelConfig

from ...errors import StartupError
from .checkpoint_layout import Layout
from .checkpoint_layouts import LAYOUTS
from .checkpoint_weights import (
    DENOISER,
    WeightFile,
    Weights,
    is_denoiser,
    is_text_encoder,
    is_vae,
    lacking,
    unet_channels,
    unet_type,
    unknown_quantisation,
    with_prefix,
)
from .components import load_component, load_pipeline, module_class, quantise
from .gguf_files import SUFFIX as GGUF
from .gguf_files import GGUFFile
from .hub import HubRepository
from .locations import TEXT_FILES, PipelineLocation, component_folder, components
from .modular_index import INDEX
from .quantization import UNQUANTISED, Quantizer
from .text_encoder_files import text_encoder_file
from .vae_files import load_vae, reporting_incomplete
from .weight_files import check_file
from .weight_kinds import examples, kind_of_weights
from .weightless import build_without_weights, is_weightless, reading
from .weights import is_single_file, resolve_weights

log = logging.getLogger(__name__)

# Tensors that trainers add to files of models with v-prediction and with a noise schedule of zero SNR.
_V_PREDICTION, _ZERO_SNR = "v_pred", "ztsnr"
_STEP = "global_step"
# Last training step of stable-diffusion-2-base, by which diffusers distinguishes it from models with v-prediction.
_SD2_BASE_STEP = 875_000
# The keys by which diffusers finds a CLIP text encoder; it is the one of the width of its tensor.
_CLIP_KEYS = tuple(
    single_file_utils.CHECKPOINT_KEY_NAMES[name]
    for name in (
        "clip",
        "clip_sdxl",
        "clip_sd3",
        "open_clip",
        "open_clip_sdxl",
        "open_clip_sdxl_refiner",
        "open_clip_sd3",
    )
)
_T5_EMBEDDINGS = "text_encoders.t5xxl.transformer.shared.weight"
_T5_INPUTS = "text_encoders.t5xxl.transformer.encoder.embed_tokens.weight"
# The key of the model file that lists files of a kind.
_KEYS = {
    "a LoRA": "list it in `loras` of a model",
    "an IP-Adapter": "give it as `ip_adapter` of a model",
    "a ControlNet": "list it in `controlnets` of a model",
    "an autoencoder (VAE)": "give it as `vae` of a model",
    "a text encoder": "list it in `text_encoders` of a model",
}
_DENOISERS = ("unet", "transformer")
_WHOLE = ("checkpoint", "denoiser")


class Checkpoint:
    """A model in one safetensors file, and in the files of text encoders beside it.

    Attributes:
        file: path of the file.
        index: content of the model_index.json of the same model in diffusers' format.
    """

    def __init__(self, file: Path, config: ModelConfig) -> None:
        """Find out the kind of model, without reading the weights.

        Raises:
            StartupError: a file is damaged, is not a model, or is of a kind that needs a `config`.
        """
        self.file = file
        self.is_gguf = file.suffix == GGUF
        if not self.is_gguf:
            check_file(file)
        self._config = config
        self._files: list[WeightFile] = [(GGUFFile if self.is_gguf else WeightFile)(file, with_prefix)]
        self._weights, self._metadata = self._files[0].header()
        self._check_kind()
        if config.config is not None and is_single_file(config.config):
            self._add_file(WeightFile(resolve_weights(config.config, "`config`"), _without_denoiser))
        self._folder = None if config.config is None or is_single_file(config.config) else _config_folder(config.config)
        self._layout: Layout | None = None
        if self._folder is None:
            is_bare = unet_channels(self._weights) is not None and not any(map(is_text_encoder, self._weights))
            infer = unet_type if is_bare else single_file_utils.infer_diffusers_model_type
            model_type = infer(self._weights)
            # "v1" is also the type of files that diffusers does not know.
            if model_type not in LAYOUTS or (model_type == "v1" and unet_channels(self._weights) is None):
                raise StartupError(self._why_config(model_type))
            self._layout = LAYOUTS[model_type]
        with self.configuration() as folder:
            widths = _clip_widths(folder)
        for part in config.text_encoders:
            file = resolve_weights(part, "`text_encoders`")
            self._add_file(text_encoder_file(file, widths))
        with self.configuration() as folder:
            self.index = PipelineLocation(str(folder), None, None).index
        if config.pipeline is not None:
            self.index = {**self.index, "_class_name": config.pipeline}

    def load(
        self,
        kind: type[DiffusionPipeline],
        *,
        device: str | torch.device,
        dtype: torch.dtype,
        quantizer: Quantizer = UNQUANTISED,
        load_components: Callable[[str], Mapping[str, Any]] = lambda _folder: {},
        others: Mapping[str, Any] | None = None,
    ) -> DiffusionPipeline:
        """Load the pipeline.

        Args:
            kind: class of the pipeline.
            quantizer: quantises components.
            load_components: returns components to use instead of those in the folder of the configurations.
            others: components to use for those that the file lacks.

        Raises:
            StartupError: the file lacks weights that no other file of the model has.
        """
        with self.configuration() as folder:
            modules: dict[str, Any] = dict(load_components(str(folder)))
            if self._layout is not None:
                wanted = components(self.index)
                modules |= {
                    name: tokenizer.make() for name, tokenizer in self._layout.tokenizers.items() if name in wanted
                }
            if self._config.vae is not None:
                modules["vae"] = load_vae(self._config.vae, folder, dtype)
            # Weights of a safety checker are never in the file.
            modules |= {"safety_checker": None} if "safety_checker" in self.index else {}
            with reading([file.file for file in self._files]):
                modules |= self._load_components(folder, dtype, quantizer, set(modules), others or {})
            return load_pipeline(kind, PipelineLocation(str(folder), None, None), device=device, dtype=dtype, **modules)

    def _load_components(
        self, folder: Path, dtype: torch.dtype, quantizer: Quantizer, given: set[str], others: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Load the components with weights."""
        kinds = {
            name: module_class(library, class_name, folder / name)
            for name, (library, class_name) in components(self.index).items()
            if name not in given
        }
        kinds = {name: kind for name, kind in kinds.items() if kind is not None}
        missing = [name for name in kinds if not self._has(name, folder)]
        found: dict[str, Any] = {name: others[name] for name in missing if name in others}
        self._check_missing([name for name in missing if name not in found])
        if (optional := self._absent()) and not others:
            log.info("%s has no weights of the %s; prompts go to the other text encoders", self.file.name, *optional)
        for name in kinds.keys() - found.keys():
            quantised = quantizer.arguments(name, kinds[name])
            if name in missing:
                assert self._config.config is not None
                part = component_folder(self._config.config.model_copy(update={"subfolder": name}))
                found[name] = load_component(kinds[name], part, dtype, **quantised)
                continue
            if quantised and self.is_gguf and name in _DENOISERS:
                raise StartupError(f"`quantize`: the weights of {self.file.name} are quantised already; remove it")
            module = self._load_component(name, folder, dtype)
            found[name] = quantise(module, dtype, **quantised) if quantised and not is_weightless() else module
        return found

    def _load_component(self, name: str, folder: Path, dtype: torch.dtype) -> Any:
        """Load one component from the file."""
        library, class_name = components(self.index)[name]
        if is_weightless():
            return build_without_weights(module_class(library, class_name, folder / name), folder / name, dtype)
        weights = self._read(_keys_of(name), dtype)
        # Files of T5 have its embeddings once.
        if _T5_EMBEDDINGS in weights:
            weights.setdefault(_T5_INPUTS, weights[_T5_EMBEDDINGS])
        options: dict[str, Any] = {}
        if name == "transformer":
            weights = {key.removeprefix(DENOISER): tensor for key, tensor in weights.items()}
        if name in _DENOISERS and self.is_gguf:
            options["quantization_config"] = GGUFQuantizationConfig(compute_dtype=dtype)
        with reporting_incomplete(self.file):
            module = load_single_file_sub_model(
                library,
                class_name,
                name,
                weights,
                diffusers.pipelines,
                is_pipeline_module=False,
                cached_model_config_path=str(folder),
                torch_dtype=dtype,
                local_files_only=True,
                **options,
            )
        if missing := lacking(module):
            raise StartupError(
                f"{self.file.name} lacks {len(missing)} weights of {class_name}, such as {missing[0]}: it is "
                "incomplete or of another model; download it again"
            )
        # diffusers leaves T5 in training mode, with dropout.
        return module.eval()

    def _read(self, keys: Callable[[str], bool], dtype: torch.dtype) -> Weights:
        weights: Weights = {}
        for file in self._files:
            weights |= file.read(keys, dtype)
        return weights

    def _add_file(self, file: WeightFile) -> None:
        """Add the weights of a file that the checkpoint does not have."""
        self._files.insert(0, file)
        self._weights = file.header()[0] | self._weights

    def _check_kind(self) -> None:
        kind = kind_of_weights(self._weights.keys())
        if library := unknown_quantisation(self._weights.keys()):
            raise StartupError(
                f"{self.file.name} is quantised for {library}, which is not supported in single files; choose a "
                "folder in diffusers' format, or a file in fp8, fp16 or GGUF"
            )
        if kind is None and self._config.config is None:
            raise StartupError(
                f"{self.file.name} is not a checkpoint that diffusers knows (keys: {examples(self._weights.keys())})"
            )
        if kind is not None and not any(word in kind for word in _WHOLE):
            remedy = _KEYS.get(kind, "choose a whole model")
            raise StartupError(f"{self.file.name} is {kind}, not a whole model; {remedy}")

    def _why_config(self, model_type: str) -> str:
        kind = kind_of_weights(self._weights.keys())
        remedy = "set `config` to a folder or hub id in diffusers' format"
        if model_type in LAYOUTS:
            return f"{self.file.name} is {kind} without a denoiser that diffusers knows; {remedy}"
        repository = single_file_utils.DIFFUSERS_DEFAULT_PIPELINE_PATHS[model_type]["pretrained_model_name_or_path"]
        return (
            f"{self.file.name} is a checkpoint of the type {model_type}, whose configuration and tokenizers are not "
            f'part of this package; {remedy}, such as "{repository}"'
        )

    @contextmanager
    def configuration(self) -> Iterator[Path]:
        """Yield a folder with the configurations of the components."""
        if self._layout is None:
            assert self._folder is not None
            yield self._folder
            return
        with tempfile.TemporaryDirectory() as name:
            self._layout.write(
                Path(name),
                in_channels=unet_channels(self._weights) or 0,
                prediction_type=self._prediction_type(),
                zero_snr=_ZERO_SNR in self._weights,
                pipeline=self._config.pipeline,
                without=self._absent(),
            )
            yield Path(name)

    def _absent(self) -> list[str]:
        """Return the optional text encoders that no file has."""
        if self._layout is None:
            return []
        return [name for name in self._layout.optional if not self._has_text_encoder(self._layout.text_encoders[name])]

    def _prediction_type(self) -> str | None:
        """Return the prediction type that the model file or the checkpoint names."""
        if self._config.prediction_type is not None:
            return self._config.prediction_type
        if _V_PREDICTION in self._weights:
            return "v_prediction"
        named = self._metadata.get("modelspec.prediction_type")
        if named in ("epsilon", "v"):
            return "epsilon" if named == "epsilon" else "v_prediction"
        if _STEP in self._weights:
            step = self._read(lambda key: key == _STEP, torch.float32)[_STEP]
            return "epsilon" if int(step) == _SD2_BASE_STEP else None
        return None

    def _check_missing(self, missing: list[str]) -> None:
        """Raise a StartupError if there is no model that has the components that the file lacks."""
        if not missing or self._folder is not None:
            return
        encoders = [name for name in missing if name.startswith("text_encoder")]
        keys = [f"`{key}`" for key, is_needed in (("text_encoders", encoders), ("vae", "vae" in missing)) if is_needed]
        remedy = f"set {' and '.join(keys)} to their files, or `config` to a model with them"
        raise StartupError(f"{self.file.name} has no weights of the {' and '.join(missing)}; {remedy}")

    def _has(self, name: str, folder: Path) -> bool:
        """Return whether the files have weights of a component."""
        if name == "vae":
            return any(map(is_vae, self._weights))
        if name.startswith("text_encoder"):
            return self._has_text_encoder(json.loads((folder / name / "config.json").read_text()))
        return name in _DENOISERS

    def _has_text_encoder(self, config: Mapping[str, Any]) -> bool:
        if config.get("model_type") == "t5":
            return bool(single_file_utils.is_t5_in_single_file(self._weights))
        width = config.get("hidden_size")
        return any(key in self._weights and width in self._weights[key].shape for key in _CLIP_KEYS)


def _keys_of(name: str) -> Callable[[str], bool]:
    """Return a function that selects the keys of a component."""
    if name == "vae":
        return is_vae
    return is_text_encoder if name.startswith("text_encoder") else is_denoiser


def _without_denoiser(key: str) -> str | None:
    key = with_prefix(key)
    return None if is_denoiser(key) else key


def _clip_widths(folder: Path) -> dict[int, str]:
    """Return the names of the CLIP text encoders of a model by their width."""
    index = PipelineLocation(str(folder), None, None).index
    names = [name for name, (_, kind) in components(index).items() if kind.startswith("CLIPTextModel")]
    return {json.loads((folder / name / "config.json").read_text())["hidden_size"]: name for name in names}


def _config_folder(source: ComponentSource) -> Path:
    """Return the folder of a `config`, downloading its files except for weights if necessary."""
    path = Path(source.source).expanduser()
    if path.exists() or is_path(source.source):
        return path
    repository = HubRepository(source.source, source.revision)
    if repository.files is None:
        return repository.file(INDEX).parent
    return repository.folder([name for name in repository.files if name.endswith(TEXT_FILES)])
