"""Puts engine gates in place of the compute-heavy methods of a pipeline's modules."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from ..engine.batching import register_container
from ..engine.gate import Gate
from .uploads import upload, upload_arguments

Forward = Callable[..., Any]

# Prompts repeat, and an embedding is cheap to keep. A gate with a cache encodes one prompt per call, so that an
# embedding does not depend on the other jobs of a batch.
PROMPT_CACHE_BYTES = 256 * 2**20
# Encoded images are small: a thousand of 512 pixels, or two hundred of 1024 pixels.
ENCODING_CACHE_BYTES = 64 * 2**20
# Maximum caption length of the Z-Image pipelines.
MAX_CAPTION_TOKENS = 512

register_container(
    DiagonalGaussianDistribution,
    lambda dist: ([dist.parameters], dist.deterministic),
    lambda leaves, deterministic: DiagonalGaussianDistribution(leaves[0], deterministic),
)


class TextEncoderGate(Gate):
    """Gate of a text encoder. Adds a batch dimension to the image patches that a vision-language model gets."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("pixel_values") is not None:
            kwargs["pixel_values"] = kwargs["pixel_values"].unsqueeze(0)
        return super().__call__(*args, **kwargs)


def gate_rows(forward: Forward, unbatched: tuple[str, ...]) -> Forward:
    """Return the gate of a denoiser that takes tensors with a batch dimension.

    Args:
        unbatched: keyword arguments of `forward` without a batch dimension.
    """
    return Gate("denoise", upload_arguments(forward), shared=unbatched)


class ListInputsGate:
    """The gate of a denoiser that takes and returns lists with one tensor per row (Z-Image).

    Captions differ in length. The gate gets them padded in one tensor; `forward` gets lists without the padding.
    """

    def __init__(self, forward: Forward, unbatched: tuple[str, ...] = ()) -> None:
        self.forward = forward
        self._gate = Gate("denoise", self._run, shared=unbatched)

    def __call__(
        self,
        x: list[torch.Tensor],
        t: torch.Tensor,
        cap_feats: list[torch.Tensor],
        *,
        return_dict: bool = False,  # noqa: ARG002  # always a tuple
        **kwargs: Any,
    ) -> Any:
        return (list(self._gate(torch.stack(x), t, *pad_captions(cap_feats), **kwargs).unbind(0)),)

    def _run(
        self, x: torch.Tensor, t: torch.Tensor, captions: torch.Tensor, lengths: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        unpadded = unpad_captions(captions, lengths)
        return torch.stack(
            self.forward(list(x.unbind(0)), upload(t, x.device), unpadded, return_dict=False, **kwargs)[0]
        )


def pad_captions(captions: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return captions in one tensor of shape (rows, MAX_CAPTION_TOKENS, width), and their lengths."""
    # On the CPU, so that reading the lengths does not wait for the device.
    lengths = torch.tensor([len(caption) for caption in captions])
    padded = [torch.nn.functional.pad(c, (0, 0, 0, MAX_CAPTION_TOKENS - len(c))) for c in captions]
    return torch.stack(padded), lengths


def unpad_captions(captions: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
    """Return the captions that `pad_captions` got."""
    return [caption[:length] for caption, length in zip(captions, lengths.tolist(), strict=True)]


def install_gates(pipeline: DiffusionPipeline, gate_denoiser: Callable[[Forward], Forward]) -> None:
    """Replace the text encoders, denoiser and VAE methods of a pipeline by gates. Modules with gates keep them.

    Args:
        gate_denoiser: returns the gated forward of the denoiser.
    """
    for name, module in pipeline.components.items():
        if name.startswith("text_encoder") and module is not None and not isinstance(module.forward, Gate):
            module.forward = TextEncoderGate("encode_prompt", _single_pass(module), remember_bytes=PROMPT_CACHE_BYTES)
    denoiser = pipeline.components.get("unet") or pipeline.transformer
    # Not by its class: the gate of some denoisers is a function around a Gate.
    if not getattr(denoiser, "has_gate", False):
        denoiser.forward = gate_denoiser(denoiser.forward)
        denoiser.has_gate = True
    if not isinstance(pipeline.vae.decode, Gate):
        gate_vae(pipeline.vae, upcasts=hasattr(pipeline, "upcast_vae"))


def gate_vae(vae: Any, *, upcasts: bool) -> None:
    """Replace the methods of a VAE by gates.

    Its calls are not merged: with 16-bit numbers the result of a merged call depends on the number of rows by up to
    8/255, and on a CPU a merged call takes as long as its parts.

    Args:
        upcasts: whether the stock pipelines convert it to float32 where its configuration has `force_upcast`: always to
            encode, and from float16 also to decode. They do so around every use, which jobs that share the VAE would
            disturb. Here the dtype of an input shows what the pipeline asks for.
    """
    dtype, kind, move = vae.dtype, type(vae), vae.to
    if upcasts and dtype == torch.float16 and vae.config.get("force_upcast"):
        vae.to(torch.float32)

    def move_only(_self: Any, *args: Any, **kwargs: Any) -> Any:
        device, *_ = torch._C._nn._parse_to(*args, **kwargs)
        return vae if device is None else move(device)

    vae.__class__ = type(kind.__name__, (kind,), {"dtype": property(lambda _self: dtype), "to": move_only})
    # The parameters of a distribution are remembered: each job samples from it with its own generator.
    encode = _in_input_dtype(vae, vae.encode, move)
    vae.encode = Gate(
        "encode", encode, merges=False, remember_bytes=ENCODING_CACHE_BYTES, reads_images=True, waits=False
    )
    # AutoencoderKL.decode accepts a generator and does not use it.
    vae.decode = Gate("decode", _in_input_dtype(vae, vae.decode, move), ignore=("generator",), merges=False)


def gate_of(module: Any) -> Gate | None:
    """Return the gate that replaces the forward of a module, or one method of a VAE."""
    if not isinstance(module, torch.nn.Module):
        return None
    function = vars(module).get("decode") or vars(module).get("forward")
    while function is not None and not isinstance(function, Gate):
        # Some denoisers have a function around their gate.
        function = getattr(function, "func", None) or getattr(function, "_gate", None)
    return function


def _in_input_dtype(vae: Any, run: Forward, convert: Forward) -> Forward:
    """Wrap a method of the VAE: compute in the dtype of its weights, or in float32 if that of the input is float32.

    Args:
        convert: changes the dtype of the VAE.
    """
    dtype = next(vae.parameters()).dtype

    def call(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.dtype == dtype or dtype == torch.float32:
            return run(x.to(dtype), *args, **kwargs)
        convert(torch.float32)
        try:
            return run(x, *args, **kwargs)
        finally:
            convert(dtype)

    return call


def _single_pass(text_encoder: Any) -> Forward:
    """Return the forward of a text encoder without the outputs that only text generation needs.

    Language models return a key-value cache, which cannot be split by rows, and logits for every position.
    """
    known = inspect.signature(text_encoder.forward).parameters
    overrides = {name: value for name, value in {"use_cache": False, "logits_to_keep": 1}.items() if name in known}
    forward: Forward = text_encoder.forward

    def run(*args: Any, pixel_values: torch.Tensor | None = None, **kwargs: Any) -> Any:
        patches = {} if pixel_values is None else {"pixel_values": pixel_values.flatten(0, 1)}
        return forward(*args, **{**kwargs, **overrides, **patches})

    return run
