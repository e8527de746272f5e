"""Changes of a denoiser for the calls of some jobs: FreeU, perturbed self-attention (PAG), and seamless tiling.

Stock pipelines change the denoiser itself for the time of their call. Jobs share it, so a change is an argument of each
call here: it is made just before the call runs, and undone after it.
"""

import copy
import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch.nn import Conv2d

from img2img.domain.conditioning import FreeU
from img2img.domain.spec import DenoisingSpec

from ...engine.gate import Gate
from ..gates import gate_of


@dataclass(frozen=True)
class PerturbedAttention:
    """The attentions that PAG replaces, by name, and their replacement.

    The processor divides the rows of a call into two or three parts, so that calls of several jobs cannot be merged.
    """

    names: tuple[str, ...]
    processor: Any

    @contextmanager
    def made(self, denoiser: torch.nn.Module) -> Iterator[None]:
        """Replace the attentions of a denoiser in the context."""
        attentions: list[Any] = [denoiser.get_submodule(name) for name in self.names]
        own = [attention.processor for attention in attentions]
        for attention in attentions:
            attention.processor = self.processor
        try:
            yield
        finally:
            for attention, processor in zip(attentions, own, strict=True):
                attention.processor = processor


@dataclass(frozen=True)
class Changes:
    """The changes of a denoiser in one call."""

    freeu: FreeU | None = None
    perturbed: PerturbedAttention | None = None
    tiling: bool = False

    @contextmanager
    def made(self, denoiser: Any) -> Iterator[None]:
        """Change a denoiser in the context."""
        with ExitStack() as stack:
            if self.freeu is not None:
                stack.callback(denoiser.disable_freeu)
                denoiser.enable_freeu(**self.freeu.model_dump())
            if self.perturbed is not None:
                stack.enter_context(self.perturbed.made(denoiser))
            if self.tiling:
                stack.enter_context(_without_edges(denoiser))
            yield


def find_perturbed(pipeline: Any) -> dict[bool, PerturbedAttention]:
    """Return the attentions that a PAG pipeline perturbs, with and without guidance; none if there are none.

    Changes the denoiser for a moment: call it before there are jobs.
    """
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    found = {}
    for guided in (True, False):
        own = denoiser.attn_processors
        try:
            pipeline._set_pag_attn_processor(pipeline.pag_applied_layers, guided)
        except ValueError:
            # No layer of the model has one of the names.
            return {}
        finally:
            changed = pipeline.pag_attn_processors
            denoiser.set_attn_processor(own)
        names = tuple(name.removesuffix(".processor") for name in changed)
        found[guided] = PerturbedAttention(names, next(iter(changed.values())))
    return found


def change_denoiser(pipeline: Any, spec: DenoisingSpec) -> None:
    """Give the pipeline object of a job a denoiser with the changes that the job asks for.

    Args:
        pipeline: its adapters are active. A PAG pipeline has `perturbed`, from `find_perturbed`.
    """
    if spec.seamless_tiling:
        pipeline.vae = tiling_vae(pipeline.vae)
    if spec.freeu is None and not spec.pag_scale and not spec.seamless_tiling:
        return
    name = "unet" if "unet" in pipeline.components else "transformer"
    perturbed = getattr(pipeline, "perturbed", None)
    # A refiner is a transformer or a UNet as well.
    freeu = spec.freeu if hasattr(getattr(pipeline, name, None), "enable_freeu") else None
    changes = Changes(
        freeu, perturbed[spec.guidance_scale > 1] if perturbed and spec.pag_scale else None, spec.seamless_tiling
    )
    if changes == Changes():
        return
    denoiser = _changed(getattr(pipeline, name), changes)
    if changes.perturbed is not None:
        # The pipeline would do this to the denoiser that jobs share.
        pipeline._set_pag_attn_processor = lambda **_arguments: None
        denoiser.set_attn_processor = lambda _processors: None
    setattr(pipeline, name, denoiser)


def takes_freeu(pipeline: DiffusionPipeline) -> bool:
    """Return whether the denoiser of a pipeline has the two stages that FreeU changes."""
    unet: Any = pipeline.components.get("unet")
    return hasattr(pipeline, "enable_freeu") and hasattr(unet, "enable_freeu") and len(unet.up_blocks) > 1


def tiling_vae(vae: Any) -> Any:
    """Return a shallow copy of a VAE with gates for which the opposite edges of an image are adjacent."""
    changed = copy.copy(vae)
    for name in ("encode", "decode"):
        gate: Gate = vars(vae)[name]
        if "tiling" not in gate.variants:
            run = functools.partial(_run, gate, vae, changes=Changes(tiling=True))
            gate.variants["tiling"] = gate.variant(run, merges=False)
        setattr(changed, name, gate.variants["tiling"])
    return changed


@contextmanager
def _without_edges(module: torch.nn.Module) -> Iterator[None]:
    """Let the convolutions of a module continue at the opposite edge in the context."""
    layers = [layer for layer in module.modules() if isinstance(layer, Conv2d) and layer.padding_mode == "zeros"]
    for layer in layers:
        layer.padding_mode = "circular"
    try:
        yield
    finally:
        for layer in layers:
            layer.padding_mode = "zeros"


def _changed(denoiser: torch.nn.Module, changes: Changes) -> Any:
    """Return a shallow copy of a denoiser that runs with the changes."""
    gate = gate_of(denoiser)
    assert gate is not None
    merges = changes.perturbed is None
    if merges not in gate.variants:
        gate.variants[merges] = gate.variant(functools.partial(_run, gate, denoiser), merges=merges)
    # Adapters of a job are arguments of its calls as well.
    forward: Any = denoiser.forward
    more = forward.keywords if isinstance(forward, functools.partial) else {}
    changed: Any = copy.copy(denoiser)
    changed.forward = functools.partial(gate.variants[merges], **more, changes=changes)
    return changed


def _run(gate: Gate, denoiser: torch.nn.Module, *args: Any, changes: Changes, **kwargs: Any) -> Any:
    with changes.made(denoiser):
        return gate.run(*args, **kwargs)
