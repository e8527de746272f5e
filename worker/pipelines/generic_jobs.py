"""What jobs of a pipeline without an own family share: modules behind gates. Everything else is copied for each job."""

import copy
import inspect
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModularPipeline
from diffusers.image_processor import VaeImageProcessor
from torch.utils import _pytree as pytree

from ..engine.gate import Gate
from .gates import ENCODING_CACHE_BYTES
from .host_schedulers import on_host
from .scheduler_kinds import SCHEDULERS
from .uploads import upload_arguments

# Components that are autoencoders: pipelines call their `encode` and `decode`.
AUTOENCODERS = ("vae", "movq", "vqvae", "vqgan")
# Words in the names of components that read an image once.
_IMAGE_ENCODERS = ("image_encoder", "vision", "siglip", "clip", "depth", "qformer")
# Schedulers whose timesteps stay in main memory. The arguments of others are not known.
_HOST_SCHEDULERS = frozenset(class_name for class_name, _ in SCHEDULERS.values())
# Components that a copied pipeline shares: modules, and what has no state. A modular pipeline refers to the components.
_SHARED = (torch.nn.Module, VaeImageProcessor, ModularPipeline)
# Keyword arguments of denoisers without a row dimension.
_UNBATCHED = ("img_ids", "txt_ids", "image_cond_ids")


class ModuleGate(Gate):
    """Gate of a module that may be called without tensors."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(leaf, torch.Tensor) and leaf.dim() for leaf in pytree.tree_leaves((args, kwargs))):
            return super().__call__(*args, **kwargs)
        return self.run(*args, **kwargs)


def install_module_gates(pipeline: DiffusionPipeline) -> None:
    """Replace the forward of every module by a gate. Modules with gates keep them. Only denoisers' calls are merged."""
    for name, module in pipeline.components.items():
        if not isinstance(module, torch.nn.Module) or getattr(module, "has_gate", False):
            continue
        module.has_gate = True  # type: ignore[assignment]
        if name in AUTOENCODERS:
            # As `_gate_vae` in gates.py: merged calls would round differently.
            memory: dict[str, Any] = {
                "encode": {"remember_bytes": ENCODING_CACHE_BYTES, "reads_images": True, "waits": False}
            }
            for method in ("encode", "decode"):
                gate = ModuleGate(method, getattr(module, method), merges=False, **memory.get(method, {}))
                setattr(module, method, gate)
        else:
            stage = _stage(name)
            merges = stage == "denoise"
            # Timesteps are in main memory.
            run = upload_arguments(module.forward) if merges else module.forward
            gate = ModuleGate(stage, run, shared=_UNBATCHED if merges else (), merges=merges)
            # Blocks of modular pipelines pass the arguments that the forward of a denoiser has.
            gate.__signature__ = inspect.signature(module.forward)  # type: ignore[attr-defined]
            module.forward = gate


def _stage(component: str) -> str:
    # FLUX.3 has a language model that rewrites the prompt.
    if "text" in component or "upsampler" in component:
        return "encode_prompt"
    return "encode_image" if any(word in component for word in _IMAGE_ENCODERS) else "denoise"


def autoencoder(pipeline: DiffusionPipeline) -> Any:
    """Return the autoencoder of a pipeline; None for a model of pixels."""
    return next((pipeline.components[name] for name in AUTOENCODERS if pipeline.components.get(name) is not None), None)


def latent_scale(pipeline: DiffusionPipeline) -> int:
    """Return the pixels along a side of a latent."""
    names = ("vae_scale_factor", "movq_scale_factor")
    if autoencoder(pipeline) is None:
        return 1
    return int(next((getattr(pipeline, name) for name in names if hasattr(pipeline, name)), 8))


def is_video(vae: Any) -> bool:
    """Return whether the tensors of an autoencoder are (batch, channels, frames, height, width)."""
    return isinstance(vae, torch.nn.Module) and any(isinstance(part, torch.nn.Conv3d) for part in vae.modules())


def denoisers(pipeline: DiffusionPipeline) -> Iterator[Any]:
    """Yield the modules that run at every step, that of the pipeline's main stage first."""
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    names = [name for name in ("unet", "transformer", "decoder") if name in modules]
    others = [name for name in modules if name not in AUTOENCODERS and _stage(name) == "denoise"]
    yield from (modules[name] for name in dict.fromkeys((*names, *others)))


def patch_size_of(pipeline: DiffusionPipeline) -> int:
    """Return the latents along a side that the denoiser makes one of: a token, or the smallest level of a UNet."""
    denoiser = next(denoisers(pipeline))
    levels = denoiser.config.get("block_out_channels")
    if isinstance(levels, list | tuple):
        return int(2 ** (len(levels) - 1))
    size = denoiser.config.get("patch_size")
    # Pipelines of transformers that read single latents pack two by two of them before.
    return max(2, size) if isinstance(size, int) else 2


def copy_for_job(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """Return a pipeline object that shares modules and tokenizers, with its own schedulers and inner pipelines."""
    copied = copy.copy(pipeline)
    for name, value in vars(pipeline).items():
        if isinstance(value, DiffusionPipeline):
            setattr(copied, name, copy_for_job(value))
        elif isinstance(value, ConfigMixin) and not isinstance(value, _SHARED):
            own = copy.deepcopy(value)
            setattr(copied, name, on_host(own) if type(own).__name__ in _HOST_SCHEDULERS else own)
    return copied


class Turns:
    """Lets one job after the other run, for pipelines whose jobs would disturb each other."""

    def __init__(self) -> None:
        self._waiting: deque[object] = deque()
        self._gate = Gate("wait", torch.clone)

    @contextmanager
    def take(self) -> Iterator[None]:
        """Wait for the turn of this job, in the order of the calls. Call it in an engine task."""
        job = object()
        self._waiting.append(job)
        try:
            while self._waiting[0] is not job:
                self._gate(torch.zeros(1, 1))
            yield
        finally:
            self._waiting.remove(job)
