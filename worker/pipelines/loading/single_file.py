"""Single-file checkpoints: a whole model in one safetensors file, with the keys of the original implementation.

diffusers converts the weights. Configurations and tokenizers come from this package, or from the `config` of the model.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import single_file_utils
from safetensors import safe_open

from img2img.domain.model_card import SINGLE_FILE, is_path
from img2img.domain.model_config import ComponentSource, ModelConfig

from ...errors import StartupError
from .checkpoint_configs import LAYOUTS, Layout
from .clip_tokenizer import clip_tokenizer
from .components import check_tokenizers, load_component, module_class, quantise
from .failures import reporting_failures
from .hub import HubRepository
from .locations import INDEX, TEXT_FILES, PipelineLocation, component_class, component_folder, components
from .quantization import UNQUANTISED, Quantizer
from .weight_files import check_file
from .weight_kinds import examples, kind_of_weights
from .weights import resolve_weights

_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_HUB_FILE = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w.-]+)/(?P<file>[^:]+\.(?:safetensors|gguf|bin|ckpt|pt|pth))")
_DENOISER_INPUT = single_file_utils.CHECKPOINT_KEY_NAMES["inpainting"]
# Tensors that trainers add to files of models with v-prediction and with a noise schedule of zero SNR.
_V_PREDICTION, _ZERO_SNR = "v_pred", "ztsnr"
# Last training step of stable-diffusion-2-base, by which diffusers tells it from models with v-prediction.
_SD2_BASE_STEP = 875_000
# The key of the model file that lists files of a kind.
_KEYS = {
    "a LoRA": "list it in `loras` of a model",
    "an IP-Adapter": "give it as `ip_adapter` of a model",
    "a ControlNet": "list it in `controlnets` of a model, in diffusers' format",
    "an autoencoder (VAE)": "give it as `vae` of a model",
}


class Checkpoint:
    """A whole model in one safetensors file.

    Attributes:
        file: path of the file.
        index: content of the model_index.json of the same model in diffusers' format.
    """

    def __init__(self, file: Path, config: ModelConfig) -> None:
        """Find out the kind of model, without reading the weights.

        Raises:
            StartupError: the file is damaged, is not a whole model, or is of a kind that needs a `config`.
        """
        check_file(file)
        self.file = file
        self._config = config
        with safe_open(file, framework="pt") as opened:
            self._metadata: Mapping[str, str] = opened.metadata() or {}
            # Tensors without values.
            self._weights = {
                key: torch.empty(opened.get_slice(key).get_shape(), device="meta")
                for key in opened.keys()  # noqa: SIM118  # not a dict
            }
        self._check_kind()
        self._layout: Layout | None = None
        if config.config is None:
            model_type = single_file_utils.infer_diffusers_model_type(self._weights)
            # "v1" is also the type of files that diffusers does not know.
            if model_type not in LAYOUTS or _DENOISER_INPUT not in self._weights:
                raise StartupError(self._why_config(model_type))
            self._layout = LAYOUTS[model_type]
        with self.configuration() as folder:
            self.index = PipelineLocation(str(folder), None, None).index

    def load(
        self,
        kind: type[DiffusionPipeline],
        *,
        device: str | torch.device,
        dtype: torch.dtype,
        quantizer: Quantizer = UNQUANTISED,
    ) -> DiffusionPipeline:
        """Load the pipeline.

        Args:
            kind: class of the pipeline.
            quantizer: quantises components.

        Raises:
            StartupError: the file lacks weights that the configuration does not have either.
        """
        if not hasattr(kind, "from_single_file"):
            raise StartupError(f"diffusers cannot load {kind.__name__} from a single file; use the folder of the model")
        with self.configuration() as folder:
            pads = self._layout.pads if self._layout is not None else {}
            given: dict[str, Any] = {name: clip_tokenizer(pad) for name, pad in pads.items()}
            if self._config.vae is not None:
                given["vae"] = load_vae(self._config.vae, folder, dtype)
            given |= self._missing_components(folder, dtype, set(given), quantizer)
            with _reporting_incomplete(self.file):
                pipeline: DiffusionPipeline = kind.from_single_file(
                    str(self.file), config=str(folder), local_files_only=True, dtype=dtype, **given
                )
                quantise(pipeline, dtype, quantizer, set(given))
                pipeline.to(device)
            check_tokenizers(pipeline, folder)
        return pipeline

    def _check_kind(self) -> None:
        kind = kind_of_weights(self._weights.keys())
        if kind is None and self._config.config is None:
            raise StartupError(
                f"{self.file.name} is not a checkpoint that diffusers knows (keys: {examples(self._weights.keys())})"
            )
        if kind is not None and "checkpoint" not in kind:
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
            assert self._config.config is not None
            yield _config_folder(self._config.config)
            return
        with tempfile.TemporaryDirectory() as name:
            self._layout.write(
                Path(name),
                in_channels=self._weights[_DENOISER_INPUT].shape[1],
                prediction_type=self._prediction_type(),
                zero_snr=_ZERO_SNR in self._weights,
            )
            yield Path(name)

    def _prediction_type(self) -> str | None:
        """Return the prediction type that the model file or the checkpoint names."""
        if self._config.prediction_type is not None:
            return self._config.prediction_type
        if _V_PREDICTION in self._weights:
            return "v_prediction"
        named = self._metadata.get("modelspec.prediction_type")
        if named in ("epsilon", "v"):
            return "epsilon" if named == "epsilon" else "v_prediction"
        if "global_step" in self._weights:
            with safe_open(self.file, framework="pt") as opened:
                return "epsilon" if int(opened.get_tensor("global_step")) == _SD2_BASE_STEP else None
        return None

    def _classes(self, folder: Path, given: set[str]) -> dict[str, Any]:
        """Return the classes of the components with weights that are not given."""
        kinds = {
            name: module_class(library, class_name, folder / name)
            for name, (library, class_name) in components(self.index).items()
            if name not in given and name != "safety_checker"
        }
        return {name: kind for name, kind in kinds.items() if kind is not None}

    def _missing_components(
        self, folder: Path, dtype: torch.dtype, given: set[str], quantizer: Quantizer
    ) -> dict[str, Any]:
        """Load the components that the file lacks from the `config` of the model."""
        kinds = self._classes(folder, given)
        missing = {name: kind for name, kind in kinds.items() if not self._has(name, kind)}
        part = self._config.config
        if missing and part is None:
            remedy = "set `vae` to one" if set(missing) == {"vae"} else "set `config` to a model with them"
            raise StartupError(f"{self.file.name} has no weights of the {' and '.join(missing)}; {remedy}")
        return {
            name: load_component(
                kind,
                component_folder(part.model_copy(update={"subfolder": name})),
                dtype,
                **quantizer.arguments(name, kind),
            )
            for name, kind in missing.items()
            if part is not None
        }

    def _has(self, name: str, kind: type) -> bool:
        """Return whether the file has weights of a component."""
        if name == "vae":
            return any(key.startswith(tuple(single_file_utils.LDM_VAE_KEYS)) for key in self._weights)
        if name.startswith("text_encoder"):
            if kind.__name__.startswith("T5"):
                return bool(single_file_utils.is_t5_in_single_file(self._weights))
            return bool(single_file_utils.is_clip_model_in_single_file(kind, self._weights))
        return name in ("unet", "transformer")


def find_checkpoint(config: ModelConfig) -> Checkpoint | None:
    """Return the checkpoint that a model consists of, downloading it if necessary; None if it is not a single file.

    Raises:
        StartupError: the file cannot be loaded, or there is no access to it.
    """
    path = Path(config.source).expanduser()
    if path.is_file():
        file = path
    elif match := _HUB_FILE.fullmatch(config.source):
        _check_suffix(match["file"])
        file = HubRepository(match["repository"], config.revision).file(match["file"])
    else:
        if config.config is not None:
            raise StartupError("`config` is for a `source` that is a single file; remove it")
        return None
    _check_suffix(file.name)
    if config.variant is not None:
        raise StartupError("`variant` is for a `source` that is a folder or a hub id; remove it")
    return Checkpoint(file, config)


def load_vae(source: ComponentSource, folder: Path, dtype: torch.dtype) -> Any:
    """Load the VAE that replaces that of a model: a folder in diffusers' format, or one file.

    Args:
        folder: folder with the configurations of the model; a VAE in one file has the configuration of the model's VAE.

    Raises:
        StartupError: it cannot be loaded, or is of another class than the VAE of the model.
    """
    with reporting_failures("`vae`"):
        class_name = components(PipelineLocation(str(folder), None, None).index)["vae"][1]
        kind = getattr(diffusers, class_name)
        if source.weight_name is None and not Path(source.source).expanduser().is_file():
            part = component_folder(source)
            if (found := component_class(part)) != class_name:
                raise StartupError(f"{part} is of the class {found}, and the model needs {class_name}")
            return load_component(kind, part, dtype)
        file = resolve_weights(source, "`weight_name`")
        with _reporting_incomplete(file):
            return kind.from_single_file(
                str(file), config=str(folder), subfolder="vae", local_files_only=True, dtype=dtype
            )


def _config_folder(source: ComponentSource) -> Path:
    """Return the folder of a `config`, downloading its files except for weights if necessary."""
    path = Path(source.source).expanduser()
    if path.exists() or is_path(source.source):
        return path
    repository = HubRepository(source.source, source.revision)
    if repository.files is None:
        return repository.file(INDEX).parent
    return repository.folder([name for name in repository.files if name.endswith(TEXT_FILES)])


def _check_suffix(name: str) -> None:
    if name.endswith(_PICKLES):
        raise StartupError(
            f"{name} is a pickle, which can run code when it is loaded; convert it to safetensors (docs/models.md)"
        )
    if name.endswith(".gguf"):
        raise StartupError(f"{name} is a GGUF file, which is not supported; choose a safetensors file")
    if not name.endswith(SINGLE_FILE):
        raise StartupError(f"{name} is not a safetensors file; other formats are not supported")


@contextmanager
def _reporting_incomplete(file: Path) -> Iterator[None]:
    """Raise the errors of diffusers about weights that a file lacks as StartupError."""
    try:
        yield
    except single_file_utils.SingleFileComponentError as error:
        raise StartupError(f"{file.name}: {str(error).splitlines()[0]}") from error
    except NotImplementedError as error:
        if "meta tensor" not in str(error):
            raise
        raise StartupError(
            f"{file.name} lacks some weights of a component: it is incomplete or of another model; download it again"
        ) from error
