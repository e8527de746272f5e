"""LoRAs that diffusers does not load: LoHa, LoKr, full differences, Tucker decompositions, and DoRAs in kohya's layout.

Each layer that such a file changes is wrapped by a layer that adds the change of its weight. The factors stay as they
are in the file; the change is computed in each call, so memory grows by the size of the file only.

LoHa and LoKr: Yeh et al., 2023 (LyCORIS). DoRA: Liu et al., 2024.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ...errors import StartupError

Factors = Mapping[str, torch.Tensor]


def rank_of(factors: Factors) -> int | None:
    """Return the rank of a change; None if it has no decomposed factor, and so no alpha."""
    for name in ("hada_w1_b", "lora_down", "lokr_t2", "lokr_w2_b", "lokr_w1_b"):
        if name in factors:
            return factors[name].shape[0]
    return None


def change_of_weight(factors: Factors, shape: torch.Size) -> torch.Tensor:
    """Return the change of a weight without its scale: a tensor of shape `shape`."""
    if "hada_w1_a" in factors:
        change = _product(factors, "hada_t1", "hada_w1_a", "hada_w1_b") * _product(
            factors, "hada_t2", "hada_w2_a", "hada_w2_b"
        )
    elif any(name.startswith("lokr_") for name in factors):
        change = _kronecker(factors)
    elif "diff" in factors:
        change = factors["diff"]
    elif "lora_mid" in factors:
        up, down = factors["lora_up"].flatten(1), factors["lora_down"].flatten(1)
        change = torch.einsum("oi,ijkl,jc->ockl", up, factors["lora_mid"], down)
    else:
        change = factors["lora_up"].flatten(1) @ factors["lora_down"].flatten(1)
    return change.reshape(shape)


def _product(factors: Factors, core: str, a: str, b: str) -> torch.Tensor:
    """Return a matrix product, or the Tucker product of a convolution if there is a core tensor."""
    if core in factors:
        return torch.einsum("ijkl,ip,jr->prkl", factors[core], factors[a], factors[b])
    return factors[a] @ factors[b]


def _kronecker(factors: Factors) -> torch.Tensor:
    first = factors["lokr_w1"] if "lokr_w1" in factors else factors["lokr_w1_a"] @ factors["lokr_w1_b"]
    second = factors["lokr_w2"] if "lokr_w2" in factors else _product(factors, "lokr_t2", "lokr_w2_a", "lokr_w2_b")
    return torch.kron(first.reshape(*first.shape, *[1] * (second.dim() - 2)), second.contiguous())


def decomposed(weight: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Return a weight with the magnitudes of a DoRA: one for each output or, if its first side is 1, for each input."""
    kept = 0 if magnitude.shape[0] == weight.shape[0] else 1
    others = [axis for axis in range(weight.dim()) if axis != kept]
    norm = torch.linalg.vector_norm(weight.float(), dim=others, keepdim=True)
    magnitudes = magnitude.float().reshape([-1 if axis == kept else 1 for axis in range(weight.dim())])
    result: torch.Tensor = weight.float() * magnitudes / norm.clamp_min(torch.finfo(torch.float32).tiny)
    return result.to(weight.dtype)


class DeltaLayer(nn.Module, BaseTunerLayer):
    """A linear or convolution layer with changes of its weight, by name of the adapter."""

    adapter_layer_names = ("factors",)
    other_param_names = ("scaling", "_file_scales")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.factors = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self._file_scales: dict[str, float] = {}
        self._active_adapter: list[str] = []

    def add(self, adapter: str, factors: Factors, file_scale: float) -> None:
        """Add the factors of an adapter.

        Args:
            file_scale: scale of the change at scale 1: alpha / rank.

        Raises:
            RuntimeError: if the factors do not fit the layer.
            StartupError: if it is a DoRA and the weight is quantised.
        """
        weight = self.get_base_weight()
        # torchao's tensors have the shape and the dtype of the weight, those of bitsandbytes do not.
        is_packed = not weight.is_floating_point()
        dtype = cast(torch.dtype, self.base_layer.compute_dtype) if is_packed else weight.dtype
        placed = {name: tensor.to(weight.device, dtype).contiguous() for name, tensor in factors.items()}
        changed = change_of_weight(placed, self._shape)
        if "dora_scale" in placed:
            if is_packed or type(weight) not in (torch.Tensor, nn.Parameter):
                raise StartupError("a DoRA needs weights that are not quantised; remove `quantize`")
            decomposed(weight + changed, placed["dora_scale"])
        if "diff_b" in placed:
            placed["diff_b"] = placed["diff_b"].reshape(self._shape[0])
        self.factors[adapter] = nn.ParameterDict(
            {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in placed.items()}
        )
        self._file_scales[adapter], self.scaling[adapter] = file_scale, 1.0

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set the scale of an adapter; diffusers calls it for the adapters that it activates."""
        if adapter in self.factors:
            self.scaling[adapter] = scale

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the output of the layer with the changes of the active adapters."""
        output: torch.Tensor = self.base_layer(x, *args, **kwargs)
        for adapter in self.active_adapters:
            if adapter in self.factors:
                output = output + self._layer_output(x, *self._change(adapter))
        return output

    def _change(self, adapter: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the changes of weight and bias by an active adapter."""
        factors, scale = cast(Factors, self.factors[adapter]), self.scaling[adapter]
        change = change_of_weight(factors, self._shape) * self._file_scales[adapter]
        if "dora_scale" in factors:
            weight = self.get_base_weight()
            # The magnitudes belong to the weight at scale 1; other scales are between it and the weight of the model.
            change = decomposed(weight + change, factors["dora_scale"]) - weight
        return change * scale, factors["diff_b"] * scale if "diff_b" in factors else None

    @property
    def _shape(self) -> torch.Size:
        """Shape of the weight, which quantised weights do not have."""
        layer = self.base_layer
        if isinstance(layer, nn.Linear):
            return torch.Size((layer.out_features, layer.in_features))
        return self.get_base_weight().shape

    def _layer_output(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        layer = self.base_layer
        if isinstance(layer, nn.Conv2d):
            return nn.functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        return nn.functional.linear(x, weight, bias)
