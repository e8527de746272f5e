"""Quantised weights: the configurations by which diffusers and transformers quantise a component while they load it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import diffusers
import torch
import transformers

from img2img.domain.model_config import ALL, ModelConfig, Quantization

from ...errors import StartupError

# Package by kind.
_PACKAGES = {"int8": "torchao", "fp8": "torchao", "int4": "torchao", "nf4": "bitsandbytes"}
# Size of a quantised weight with its share of a scale.
_BYTES = {"int8": 1.0, "fp8": 1.0, "int4": 0.56, "nf4": 0.52}
_INSTALL = 'run `pip install "img2img-server[quantize]"`'
# Weights that share a scale, in `int4`.
_GROUP_SIZE = 32


def is_quantisable(name: str) -> bool:
    """Return whether a component is one that is quantised: the denoiser or a text encoder.

    Most layers of a VAE are convolutions, which keep their dtype.
    """
    return name in ("unet", "transformer") or name.startswith("text_encoder")


def saved_bytes(module: torch.nn.Module, kind: Quantization) -> int:
    """Return by how many bytes the weights of a module become smaller, before they are quantised."""
    weights = [part.weight for part in module.modules() if isinstance(part, torch.nn.Linear)]
    return int(sum(weight.numel() * (weight.element_size() - _BYTES[kind]) for weight in weights))


def check_loras_with(kinds: Mapping[str, Quantization], config: ModelConfig) -> None:
    """Raise StartupError if a model has LoRAs, and weights of kinds that take none."""
    kind = next((kind for kind in kinds.values() if kind in ("int4", "nf4")), None)
    if kind is not None and config.loras:
        raise StartupError(f"`quantize`: {kind} weights take no LoRAs; choose int8 or fp8, or remove `loras`")


@dataclass(frozen=True)
class Quantizer:
    """Quantises the components of one model while they are loaded on its device."""

    device: str = "cpu"
    # Where weights are quantised: in main memory if they are offloaded from the device.
    load_device: str = "cpu"
    dtype: torch.dtype = torch.float32
    kinds: Mapping[str, Quantization] = field(default_factory=dict)

    def check(self, names: Collection[str], config: ModelConfig) -> None:
        """Check that a model has the components, and that packages, device and adapters support their kinds.

        Args:
            names: the components of the model.
            config: the configuration of the model.

        Raises:
            StartupError: one of them is not so.
        """
        possible = [name for name in names if is_quantisable(name)]
        for name, kind in self.kinds.items():
            if name != ALL and name not in possible:
                raise StartupError(
                    f"`quantize.{name}`: the components of this model that can be quantised are {', '.join(possible)}"
                )
            if reason := self._why_not(kind):
                raise StartupError(f"`quantize`: {reason}")
            if find_spec(_PACKAGES[kind]) is None:
                raise StartupError(f"`quantize`: {kind} needs the package {_PACKAGES[kind]}; {_INSTALL}")
        check_loras_with(self.kinds, config)
        if config.ip_adapter is not None and "unet" in possible and self.kind_of("unet") is not None:
            raise StartupError(
                "`quantize`: an IP-Adapter needs a UNet that is not quantised; remove `ip_adapter`, or quantise the "
                'text encoder only: `quantize = { text_encoder = "int8" }`'
            )

    def kind_of(self, name: str) -> Quantization | None:
        """Return how a component is quantised."""
        return self.kinds.get(name, self.kinds.get(ALL)) if is_quantisable(name) else None

    def arguments(self, name: str, kind: type) -> dict[str, Any]:
        """Return the arguments of `from_pretrained` and `from_single_file` for a component.

        Args:
            kind: class of the component.
        """
        chosen = self.kind_of(name)
        if chosen is None:
            return {}
        library: Any = diffusers if issubclass(kind, diffusers.ModelMixin) else transformers
        # The others can be quantised on the device only.
        where = self.load_device if chosen in ("int8", "fp8") else self.device
        arguments: dict[str, Any] = {"quantization_config": self._configuration(chosen, library)}
        # With torchao, a `device_map` with the CPU means weights that are offloaded, which are not quantised.
        if torch.device(where).type != "cpu" or chosen == "nf4":
            arguments["device_map"] = {"": where}
        return arguments

    def _configuration(self, kind: Quantization, library: Any) -> Any:
        if kind == "nf4":
            # Scales are quantised too, which saves another 0.4 bits per weight.
            return library.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=self.dtype,
            )
        from torchao.quantization import Float8WeightOnlyConfig, Int4WeightOnlyConfig, Int8WeightOnlyConfig

        if kind == "int4":
            packing = "tile_packed_to_4d" if self._type == "cuda" else "plain_int32"
            return library.TorchAoConfig(Int4WeightOnlyConfig(group_size=_GROUP_SIZE, int4_packing_format=packing))
        return library.TorchAoConfig(Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig())

    def _why_not(self, kind: Quantization) -> str | None:
        """Return why this kind does not work with the device and the dtype."""
        if kind == "int4" and self._type not in ("cuda", "xpu"):
            return f"int4 does not run on {self._type}; choose int8"
        if kind == "int4" and self.dtype != torch.bfloat16:
            return 'int4 computes in bfloat16; set `dtype = "bfloat16"`, or choose nf4'
        if kind == "nf4" and self._type not in ("cuda", "xpu"):
            return f"nf4 does not run on {self._type}; choose int8"
        if kind == "fp8" and self._type == "mps":
            return "fp8 does not run on mps; choose int8"
        return None

    @property
    def _type(self) -> str:
        return torch.device(self.device).type


UNQUANTISED = Quantizer()
