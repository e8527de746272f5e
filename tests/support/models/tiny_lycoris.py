"""Tiny random LoRAs of LyCORIS for tiny UNet models, with the change of each weight, computed by its definition."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import nn

RANK, ALPHA = 2, 1.5
FACTORS = Mapping[str, np.ndarray]
# Layers that a file changes: linear layers, convolutions of 1 and 3, of the UNet and of the text encoders.
LAYERS = re.compile(
    r"attn1\.to_q$|attn2\.to_k$|to_out\.0$|ff\.net\.2$|proj_in$|\.conv1$|time_emb_proj$|conv_shortcut$"
    r"|downsamplers\.0\.conv$|upsamplers\.0\.conv$|self_attn\.q_proj$|out_proj$"
)
COMPONENTS = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}

# Changes at scale 1 by component and name of the parameter.
Changes = dict[tuple[str, str], np.ndarray]


class Random:
    """Random factors with values that change images visibly."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(self, *shape: int, size: float = 0.5) -> np.ndarray:
        return (self._rng.normal(size=shape) * size).astype(np.float32)


def loha(shape: tuple[int, ...], random: Random) -> tuple[FACTORS, np.ndarray]:
    out, inner = shape[0], int(np.prod(shape[1:]))
    a1, b1, a2, b2 = random(out, RANK), random(RANK, inner), random(out, RANK), random(RANK, inner)
    change = (a1 @ b1) * (a2 @ b2) * ALPHA / RANK
    return {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": ALPHA}, change


def loha_tucker(shape: tuple[int, ...], random: Random) -> tuple[FACTORS, np.ndarray]:
    if shape[2:] in ((), (1, 1)):
        return loha(shape, random)
    factors, halves = {"alpha": ALPHA}, []
    for n in (1, 2):
        core, a, b = random(RANK, RANK, *shape[2:]), random(RANK, shape[0]), random(RANK, shape[1])
        factors |= {f"hada_t{n}": core, f"hada_w{n}_a": a, f"hada_w{n}_b": b}
        halves.append(_tucker(core, a.T, b.T))
    return factors, halves[0] * halves[1] * ALPHA / RANK


def lokr(shape: tuple[int, ...], random: Random) -> tuple[FACTORS, np.ndarray]:
    """Full first factor, second one of low rank."""
    first, a = random(4, 4), random(shape[0] // 4, RANK)
    b = random(RANK, shape[1] // 4 * int(np.prod(shape[2:])))
    factors = {"lokr_w1": first, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": ALPHA}
    return factors, _kron(first, (a @ b).reshape(shape[0] // 4, shape[1] // 4, *shape[2:])) * ALPHA / RANK


def lokr_full(shape: tuple[int, ...], random: Random) -> tuple[FACTORS, np.ndarray]:
    """Two full factors, for which alpha does not count."""
    first, second = random(2, 2), random(shape[0] // 2, shape[1] // 2, *shape[2:], size=0.1)
    return {"lokr_w1": first, "lokr_w2": second, "alpha": 1e9}, _kron(first, second)


def lokr_tucker(shape: tuple[int, ...], random: Random) -> tuple[FACTORS, np.ndarray]:
    """Two factors of low rank; for convolutions the second one with a core tensor."""
    a1, b1 = random(4, RANK), random(RANK, 4)
    if shape[2:] in ((), (1, 1)):
        a2, b2 = random(shape[0] // 4, RANK), random(RANK, shape[1] // 4)
        second = {"lokr_w2_a": a2, "lokr_w2_b": b2}
        full = (a2 @ b2).reshape(*(side // 4 for side in shape[:2]), *shape[2:])
    else:
        core, a2, b2 = random(RANK, RANK, *shape[2:]), random(RANK, shape[0] // 4), random(RANK, shape[1] // 4)
        second = {"lokr_t2": core, "lokr_w2_a": a2, "lokr_w2_b": b2}
        full = _tucker(core, a2.T, b2.T)
    return {"lokr_w1_a": a1, "lokr_w1_b": b1, **second, "alpha": ALPHA}, _kron(a1 @ b1, full) * ALPHA / RANK


def full(shape: tuple[int, ...], random: Random) -> tuple[FACTORS, np.ndarray]:
    change = random(*shape, size=0.1)
    return {"diff": change, "diff_b": random(shape[0], size=0.1)}, change


def locon_tucker(shape: tuple[int, ...], random: Random) -> tuple[FACTORS, np.ndarray]:
    if shape[2:] in ((), (1, 1)):
        return lora(shape, random)
    up, core, down = random(shape[0], RANK), random(RANK, RANK, *shape[2:]), random(RANK, shape[1])
    factors = {
        "lora_up.weight": up[..., None, None],
        "lora_mid.weight": core,
        "lora_down.weight": down[..., None, None],
    }
    return {**factors, "alpha": ALPHA}, _tucker(core, up, down.T) * ALPHA / RANK


def lora(shape: tuple[int, ...], random: Random) -> tuple[FACTORS, np.ndarray]:
    up, down = random(shape[0], RANK), random(RANK, *shape[1:])
    change = (up @ down.reshape(RANK, -1)).reshape(shape) * ALPHA / RANK
    return {
        "lora_up.weight": up.reshape(*up.shape, *[1] * (len(shape) - 2)),
        "lora_down.weight": down,
        "alpha": ALPHA,
    }, change


KINDS: Mapping[str, Callable[[tuple[int, ...], Random], tuple[FACTORS, np.ndarray]]] = {
    "loha": loha,
    "loha-tucker": loha_tucker,
    "lokr": lokr,
    "lokr-full": lokr_full,
    "lokr-tucker": lokr_tucker,
    "full": full,
    "locon-tucker": locon_tucker,
    "dora-of-outputs": lora,
    "dora-of-inputs": lora,
    "dora-of-lokr": lokr,
}


def tiny_lycoris(model: Path, file: Path, kind: str, *, seed: int = 0) -> Changes:
    """Save a file with the keys of LyCORIS and kohya's scripts, and return its changes."""
    pipeline = DiffusionPipeline.from_pretrained(model)
    random = Random(seed)
    tensors, changes = {}, {}
    for component, prefix in COMPONENTS.items():
        module = getattr(pipeline, component, None)
        for path, layer in module.named_modules() if module else ():
            if not isinstance(layer, nn.Linear | nn.Conv2d) or not LAYERS.search(path):
                continue
            weight = layer.weight.detach().numpy()
            factors, change = KINDS[kind](weight.shape, random)
            change = change.reshape(weight.shape)
            if kind.startswith("dora"):
                factors, change = _dora(factors, change, weight, random, of_inputs=kind == "dora-of-inputs")
            changes[component, f"{path}.weight"] = change
            if layer.bias is None:
                factors = {factor: value for factor, value in factors.items() if factor != "diff_b"}
            elif "diff_b" in factors:
                changes[component, f"{path}.bias"] = factors["diff_b"]
            name = _name(pipeline, component, path, prefix)
            tensors |= {f"{name}.{factor}": torch.tensor(value) for factor, value in factors.items()}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
    return changes


def _dora(
    factors: FACTORS, change: np.ndarray, weight: np.ndarray, random: Random, *, of_inputs: bool
) -> tuple[FACTORS, np.ndarray]:
    merged = weight + change
    axis = 1 if of_inputs else 0
    columns = np.moveaxis(merged, axis, 0).reshape(merged.shape[axis], -1)
    magnitudes = np.linalg.norm(columns, axis=1) * (1 + random(len(columns), size=0.2))
    directions = columns / np.linalg.norm(columns, axis=1, keepdims=True)
    moved = np.moveaxis(merged, axis, 0)
    result = np.moveaxis((directions * magnitudes[:, None]).reshape(moved.shape), 0, axis)
    shape = [-1 if side == axis else 1 for side in range(merged.ndim)]
    return {**factors, "dora_scale": magnitudes.reshape(shape).astype(np.float32)}, result - weight


def _tucker(core: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Return the kernel of a convolution by `down`, then `core`, a tensor (rank, rank, height, width), then `up`."""
    kernel = np.zeros((len(up), len(down), *core.shape[2:]), np.float32)
    for y, x in np.ndindex(*core.shape[2:]):
        kernel[:, :, y, x] = up @ core[:, :, y, x] @ down.T
    return kernel


def _kron(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    if second.ndim == 2:
        return np.kron(first, second)
    kernel = np.zeros((len(first) * len(second), first.shape[1] * second.shape[1], *second.shape[2:]), np.float32)
    for y, x in np.ndindex(*second.shape[2:]):
        kernel[:, :, y, x] = np.kron(first, second[:, :, y, x])
    return kernel


def _name(pipeline: DiffusionPipeline, component: str, path: str, prefix: str) -> str:
    """Return the name of a layer in files of kohya's scripts."""
    is_xl = hasattr(pipeline, "text_encoder_2")
    if component != "unet":
        prefix = "lora_te1_" if is_xl and component == "text_encoder" else prefix
        path = path if path.startswith("text_model.") else f"text_model.{path}"
    elif is_xl:
        path = _sgm_path(path, pipeline.unet.config.layers_per_block)
    return prefix + path.replace(".", "_")


def _sgm_path(path: str, layers: int) -> str:
    """Return the path of a UNet's layer in the original code of Stable Diffusion XL."""
    kind, *parts = path.split(".")
    block = int(parts.pop(0)) if kind != "mid_block" else 0
    inner, index, *rest = parts
    layer = ".".join(rest)
    if inner == "resnets":
        layer = {
            "conv1": "in_layers.2",
            "conv2": "out_layers.3",
            "time_emb_proj": "emb_layers.1",
            "conv_shortcut": "skip_connection",
        }[layer]
    if kind == "mid_block":
        return f"middle_block.{1 if inner == 'attentions' else 2 * int(index)}.{layer}"
    if inner == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers + 1)}.0.op"
    if inner == "upsamplers":
        return f"output_blocks.{block * (layers + 1) + layers}.2.conv"
    place = int(inner == "attentions")
    if kind == "down_blocks":
        return f"input_blocks.{1 + block * (layers + 1) + int(index)}.{place}.{layer}"
    return f"output_blocks.{block * (layers + 1) + int(index)}.{place}.{layer}"
