"""Where the modules of a model are: on the device, or in main memory or on disk until they are used (`offload`)."""

import fcntl
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import CpuOffload, add_hook_to_module, remove_hook_from_module
from diffusers import DiffusionPipeline
from diffusers.hooks import HookRegistry, apply_group_offloading

from img2img.domain.model_config import ModelConfig

from ...devices import empty_cache, with_index
from ...errors import StartupError
from .weightless import META, is_weightless

# Name of the folders in `offload_folder`, and of the file that is locked while one is in use.
_PREFIX, _LOCK = "img2img-", "lock"
# Components that take turns at every step, and therefore stay on the device together.
_DENOISING = ("unet", "transformer", "controlnet")


class Placement:
    """Puts the modules of one model on the device, or offloads them with the hooks of accelerate and diffusers.

    Modules get their hooks before their gates: a gate runs the hooked module once for a whole batch.
    """

    def __init__(self, config: ModelConfig, device: str | torch.device) -> None:
        """Choose where modules are.

        Raises:
            StartupError: the device, or another key of the model, does not go with `offload`.
        """
        self.device = with_index(device)
        self._mode = config.offload
        check_offload(config, self.device)
        self._modules: list[torch.nn.Module] = []
        self._folder = _Folder(config.offload_folder) if config.offload_folder and not is_weightless() else None

    @property
    def offloads(self) -> bool:
        """Whether weights are not on the device all the time."""
        return self._mode != "none"

    @property
    def splits_modules(self) -> bool:
        """Whether layers of a module are offloaded one by one or in groups, and are there in their calls only."""
        return self._mode in ("group", "layers")

    @property
    def load_device(self) -> torch.device:
        """Device on which modules are loaded, before `put`."""
        if is_weightless():
            return torch.device(META)
        return self.device if self._mode == "none" else torch.device("cpu")

    def put_components(self, pipeline: DiffusionPipeline) -> None:
        """Put the components of a pipeline in place."""
        for name, module in pipeline.components.items():
            if isinstance(module, torch.nn.Module):
                self.put(name, module)

    def put(self, name: str, module: torch.nn.Module) -> None:
        """Put a module in place, unless it is already. Call it before the module gets its gate.

        Args:
            name: component of a pipeline that it is.
        """
        if is_weightless():
            return
        if self._mode == "none":
            module.to(self.device)
            return
        if any(module is known for known in self._modules):
            return
        self._modules.append(module)
        match self._mode:
            case "model":
                add_hook_to_module(module, _WholeModule(self.device, "denoise" if name in _DENOISING else name, self))
            case "group":
                self._put_groups(name, module)
            case "layers":
                self._put_layers(name, module)

    def _put_layers(self, name: str, module: torch.nn.Module) -> None:
        # Buffers next to weights that no layer owns are offloaded too, as in diffusers.
        buffers = len(module._parameters) > 0
        if self._folder is None:
            cpu_offload(module, self.device, offload_buffers=buffers)
        else:
            disk_offload(module, self._folder.new(name), self.device, offload_buffers=buffers)

    def _put_groups(self, name: str, module: torch.nn.Module) -> None:
        if name == "vae":
            # Small, and pipelines read its statistics outside of its layers.
            module.to(self.device)
        elif name in _DENOISING:
            self._apply_groups(name, module, offload_type="block_level", num_blocks_per_group=1)
        elif self._folder is None:
            # The blocks of text encoders are not children of the module, but deeper.
            self._apply_groups(name, module, offload_type="leaf_level")
        else:
            # Groups on disk lose weights that two layers share, such as the embeddings of T5.
            self._put_layers(name, module)

    def _apply_groups(self, name: str, module: torch.nn.Module, **groups: Any) -> None:
        apply_group_offloading(
            module,
            onload_device=self.device,
            offload_device=torch.device("cpu"),
            use_stream=self.device.type in ("cuda", "xpu"),
            offload_to_disk_path=None if self._folder is None else self._folder.new(name),
            **groups,
        )

    def close(self) -> None:
        """Remove the hooks, and the weights on disk. The modules cannot be used afterwards."""
        for module in self._modules:
            remove_hook_from_module(module, recurse=True)
            if self._mode == "group":
                HookRegistry.check_if_exists_or_initialize(module).remove_hook("group_offloading", recurse=True)
        self._modules.clear()
        if self._folder is not None:
            self._folder.close()


class _WholeModule(CpuOffload):  # type: ignore[misc]
    """Moves a module to the device when it is called, and all other offloaded modules of the process away.

    The hooks of `enable_model_cpu_offload` are a chain: each moves its predecessor away. Here jobs are at different
    stages at the same time, so that any module can be the next one.
    """

    _hooks: "WeakSet[_WholeModule]" = WeakSet()
    # Models are loaded and unloaded on another thread than the engine's.
    _lock = threading.Lock()

    def __init__(self, device: torch.device, stage: str, model: object) -> None:
        super().__init__(execution_device=device)
        # Modules of a stage of a model stay on the device together.
        self._stage = (id(model), stage)
        self._module: torch.nn.Module | None = None
        with self._lock:
            self._hooks.add(self)

    def init_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        """Move the module to main memory."""
        self._module = module
        self._move_away()
        return module

    def _move_away(self) -> None:
        """Move the module to main memory, except for the small layer that pipelines call by itself (`clip_skip`)."""
        assert self._module is not None
        self._module.to("cpu")
        for name, layer in self._module.named_modules():
            if name.endswith("final_layer_norm"):
                layer.to(self.execution_device)

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Make room for the module and move it to the device."""
        with self._lock:
            hooks = list(self._hooks)
        others = [hook for hook in hooks if hook._stage != self._stage and hook.is_on_device]
        for hook in others:
            hook._move_away()
        if others:
            empty_cache(self.execution_device)
        return super().pre_forward(module, *args, **kwargs)

    def detach_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        """Forget the module."""
        with self._lock:
            self._hooks.discard(self)
        self._module = None
        return module

    @property
    def is_on_device(self) -> bool:
        parameter = next(self._module.parameters(), None) if self._module is not None else None
        return parameter is not None and parameter.device == self.execution_device


class _Folder:
    """A folder for the weights of one model in one process, inside of `offload_folder`."""

    def __init__(self, parent: Path) -> None:
        """Make the folder, and remove those of processes that have ended."""
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for other in parent.glob(f"{_PREFIX}*"):
                _remove_unused(other)
            self._path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._lock = (self._path / _LOCK).open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as error:
            raise StartupError(f"`offload_folder`: cannot write to {parent}: {error.strerror}") from error
        self._count = 0

    def new(self, name: str) -> str:
        """Return the path of a new folder for one module."""
        self._count += 1
        folder = self._path / f"{self._count}-{name}"
        folder.mkdir()
        return str(folder)

    def close(self) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
        self._lock.close()


def _remove_unused(folder: Path) -> None:
    """Remove the folder of a process that no longer runs: its lock is free."""
    lock = folder / _LOCK
    if not lock.is_file():
        return
    with lock.open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        shutil.rmtree(folder, ignore_errors=True)


def check_offload(config: ModelConfig, device: torch.device) -> None:
    """Raise StartupError for keys that do not go together."""
    mode, has_folder, kinds = config.offload, config.offload_folder is not None, set(config.quantize.values())
    adapters = [name for name in ("loras", "ip_adapter") if getattr(config, name)]
    if has_folder and mode not in ("group", "layers"):
        raise StartupError('`offload_folder` is for `offload = "group"` and `"layers"`; remove it')
    if mode == "none":
        return
    if device.type == "mps":
        raise StartupError("`offload`: mps shares the main memory, so that nothing is saved; remove it")
    if device.type == "cpu" and not has_folder:
        remedy = 'choose "layers" and set' if mode == "model" else "set"
        raise StartupError(
            f"`offload`: on the CPU, weights are in main memory anyway; {remedy} `offload_folder` to have them on "
            "disk, or remove `offload`"
        )
    if "int4" in kinds:
        raise StartupError("`offload` does not work with int4 weights; choose int8, or remove `offload`")
    if kinds and mode == "layers":
        raise StartupError('`offload = "layers"` does not work with `quantize`; choose "model" or "group"')
    if kinds and mode == "group" and (has_folder or "nf4" in kinds):
        what = "`offload_folder`" if has_folder else "nf4"
        raise StartupError(f'`offload = "group"` with {what} does not work with `quantize`; choose "model"')
    if adapters and mode == "group" and has_folder:
        raise StartupError(
            f'`offload = "group"` with `offload_folder` does not work with `{adapters[0]}`; choose "layers"'
        )
