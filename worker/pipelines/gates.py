"""Gates in the place of what the heavy modules of a pipeline do."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch.utils import _pytree as pytree

from ..engine.batching import register_container
from ..engine.gate import Gate

# Prompts repeat, and an embedding costs no more to keep than it cost to make. A gate with memory
# encodes one prompt a call, so that an embedding does not depend on the jobs beside it.
PROMPT_MEMORY_BYTES = 256 * 2**20
CAPTION_TOKENS = 512  # the most that the Z-Image pipelines pass

register_container(
    DiagonalGaussianDistribution,
    lambda dist: ([dist.parameters], dist.deterministic),
    lambda leaves, deterministic: DiagonalGaussianDistribution(leaves[0], deterministic),
)


class TextGate(Gate):
    """Of a text encoder. To one that sees a picture beside the text, its patches come without a row of their own."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("pixel_values") is not None:
            kwargs["pixel_values"] = kwargs["pixel_values"].unsqueeze(0)
        return super().__call__(*args, **kwargs)


def install_gates(pipeline: DiffusionPipeline, shared: Sequence[str] = ()) -> None:
    """Replaces what the heavy modules do by gates that do it in company. Those that have gates already keep them.

    shared: arguments of the denoiser without rows of their own.
    """
    for name, module in pipeline.components.items():
        if name.startswith("text_encoder") and module is not None and not isinstance(module.forward, Gate):
            module.forward = TextGate("encode_prompt", _for_one_pass(module), remember_bytes=PROMPT_MEMORY_BYTES)
    denoiser = pipeline.components.get("unet") or pipeline.transformer
    if isinstance(denoiser, diffusers.ZImageTransformer2DModel):
        if inspect.ismethod(denoiser.forward):  # not gated yet
            denoiser.forward = _of_lists(denoiser.forward)
    elif not isinstance(denoiser.forward, Gate):
        denoiser.forward = Gate("denoise", denoiser.forward, shared=shared)
    vae = pipeline.vae
    if isinstance(vae.decode, Gate):
        return
    if vae.config.get("force_upcast") and "unet" in pipeline.components:
        # Stock pipelines cast such a VAE to fp32 and back around every use. Shared by jobs at different places, it
        # would be caught halfway; so it is in fp32 for good, and its gate casts what goes in and comes out.
        vae.to(torch.float32)
        vae.register_to_config(force_upcast=False)
    vae.encode = Gate("encode", _in_dtype_of(vae, vae.encode))
    # The KL autoencoder takes a generator for decode and does not use it.
    vae.decode = Gate("decode", _in_dtype_of(vae, vae.decode), ignore=("generator",))


def _in_dtype_of(vae: Any, run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` for a tensor of any float type: computes in the module's type, answers in the caller's."""

    def cast_around(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.dtype == vae.dtype:
            return run(x, *args, **kwargs)
        output = run(x.to(vae.dtype), *args, **kwargs)
        return pytree.tree_map_only(torch.Tensor, lambda leaf: leaf.to(x.dtype), output)

    return cast_around


def _for_one_pass(text_encoder: Any) -> Callable[..., Any]:
    """What a text encoder does. Language models do it without what only the generation of text needs: the keys and
    values of all layers, which cannot be split by rows, and the scores of every word at every place."""
    known = inspect.signature(text_encoder.forward).parameters
    changed = {name: value for name, value in {"use_cache": False, "logits_to_keep": 1}.items() if name in known}
    forward: Callable[..., Any] = text_encoder.forward

    def run(*args: Any, pixel_values: torch.Tensor | None = None, **kwargs: Any) -> Any:
        seen = {} if pixel_values is None else {"pixel_values": pixel_values.flatten(0, 1)}
        return forward(*args, **{**kwargs, **changed, **seen})

    return run


def _of_lists(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A gate for the Z-Image transformer, which takes and gives lists, one tensor a row, with captions of any length.

    Behind the gate rows are rows of one tensor, captions padded; the transformer gets lists without the padding.
    """

    def run(x: torch.Tensor, t: torch.Tensor, captions: torch.Tensor, lengths: torch.Tensor, **kwargs: Any) -> Any:
        cut = [caption[:length] for caption, length in zip(captions, lengths.tolist(), strict=True)]
        return torch.stack(forward(list(x.unbind(0)), t, cut, return_dict=False, **kwargs)[0])

    gate = Gate("denoise", run)

    def call(x: list[torch.Tensor], t: torch.Tensor, cap_feats: list[torch.Tensor], **kwargs: Any) -> Any:
        lengths = torch.tensor([len(caption) for caption in cap_feats])  # on the CPU: reading them waits for nothing
        padded = [torch.nn.functional.pad(c, (0, 0, 0, CAPTION_TOKENS - len(c))) for c in cap_feats]
        return (list(gate(torch.stack(x), t, torch.stack(padded), lengths, **kwargs).unbind(0)),)

    return call
