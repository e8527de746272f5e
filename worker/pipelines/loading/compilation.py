"""Compiles denoisers with torch.compile, for the fixed shapes that are warmed up before a model is ready."""

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch

from img2img.domain.model_config import ModelConfig

from ...engine.gate import Gate
from ...errors import StartupError
from ..uploads import upload_arguments

# Shapes of one function: buckets of rows, times the widths of the blocks of a UNet. Beyond it, torch runs eagerly.
MAX_SHAPES = 1024


class CompiledRun:
    """The function of a gate whose modules are compiled.

    Only `warm_up` compiles, which takes seconds to minutes. Calls of other shapes run eagerly, so that jobs never wait
    for the compiler, and so that an image does not depend on the jobs before.
    """

    def __init__(self, gate: Gate, run: Callable[..., Any]) -> None:
        self._gate, self._run = gate, run
        self._stance = "force_eager"
        gate.use_buckets(self)

    def begin_size(self) -> None:
        """Take the next call of the gate as the example that `warm_up` repeats."""
        self._gate.forget_example()

    def warm_up(self, rows: int) -> None:
        """Compile for calls with a number of rows. Call it on the engine's thread, after a call of the gate."""
        self._stance = "default"
        try:
            self._gate.warm_up(rows)
        finally:
            self._stance = "eager_on_recompile"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.compiler.set_stance(self._stance):
            return self._run(*args, **kwargs)


def check_compile(config: ModelConfig, device: torch.device, family: str, *, has_fixed_shapes: bool) -> None:
    """Check that the model can be compiled, if it is configured.

    Args:
        family: name of its family.
        has_fixed_shapes: whether the shapes of its calls depend on the size of the image only.

    Raises:
        StartupError: it cannot.
    """
    if config.compile in (None, "off"):
        return
    if not has_fixed_shapes:
        raise StartupError(
            f"`compile`: the calls of {family} models have another shape for each length of a prompt; remove it"
        )
    if config.offload != "none":
        raise StartupError("`compile` does not work with `offload`; remove one of them")
    if device.type not in ("cpu", "cuda", "xpu"):
        raise StartupError(f"`compile` is not supported on {device.type}; remove it")
    if device.type == "cpu" and not has_cpp_compiler():
        raise StartupError("`compile` needs a C++ compiler on the CPU: install g++, or remove it")
    if device.type != "cpu" and not has_triton():
        raise StartupError("`compile` needs triton and a C compiler on a GPU: install them, or remove `compile`")


def has_cpp_compiler() -> bool:
    """Return whether torch.compile finds a C++ compiler, which it needs on a CPU."""
    # These modules take a second to import.
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def has_triton() -> bool:
    """Return whether torch.compile finds triton, which it needs on a GPU, and the C compiler that triton calls."""
    from torch.utils._triton import has_triton as find

    compilers = (os.environ.get("CC", "cc"), "gcc", "clang")
    return any(map(shutil.which, compilers)) and bool(find())


def compile_denoiser(denoiser: Any, gate: Gate, mode: str) -> CompiledRun:
    """Compile the denoiser behind a gate, and run its calls with fixed numbers of rows.

    Copies of it with adapters, which are made before, run eagerly.

    Args:
        mode: `regional` or `full`.

    Raises:
        StartupError: its class has no repeated blocks.
    """
    from torch._dynamo import config as limits

    limits.recompile_limit = limits.accumulated_recompile_limit = MAX_SHAPES
    if mode == "full":
        run = getattr(gate.run, "uploads_for", gate.run)
        return CompiledRun(gate, upload_arguments(torch.compile(run, dynamic=False)))
    if not getattr(denoiser, "_repeated_blocks", None):
        raise StartupError(f'a {type(denoiser).__name__} has no repeated blocks; set `compile = "full"`')
    denoiser.compile_repeated_blocks(dynamic=False)
    return CompiledRun(gate, gate.run)
