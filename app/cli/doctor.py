"""`img2img doctor`: the state of this machine for the service, on one page."""

import os
import platform
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from .errors import USAGE, server_errors
from .printing import echo

if TYPE_CHECKING:
    from ..settings import ApiSettings

OK, NOTE, FAULT = "ok", "note", "FAULT"
GB = 1e9
# Free space below which downloads or results may not fit.
LITTLE_DISK = 10 * GB
NO_DISK = 0.5 * GB
# Part of the free memory that weights may take.
FILLED = 0.85
# The first NVIDIA drivers that run CUDA 12 and 13.
DRIVERS = {"12": 525, "13": 580}


class Finding(NamedTuple):
    """A line of the page."""

    level: str
    name: str
    text: str


def doctor() -> None:
    """Check this machine and the settings: PyTorch, GPU, memory, disk, Redis, data directory, model."""
    with server_errors("serve"):
        from .serve import settings_of

        settings = settings_of()
    has_fault = False
    for check in CHECKS:
        for finding in check(settings):
            echo(f"{finding.level:6}{finding.name:10}{finding.text}")
            has_fault |= finding.level == FAULT
    if has_fault:
        raise typer.Exit(USAGE)


def _python(_settings: "ApiSettings") -> Iterator[Finding]:
    system = f"{platform.system()} {platform.machine()}"
    yield Finding(OK, "img2img", f"{version('img2img-server')}, Python {platform.python_version()}, {system}")


def _torch(_settings: "ApiSettings") -> Iterator[Finding]:
    driver = _nvidia_driver()
    if find_spec("torch") is None:
        yield Finding(NOTE, "PyTorch", "not installed: workers run elsewhere")
        return
    from ..supervisor.devices import device_report

    try:
        report = device_report()
    except RuntimeError as error:
        yield Finding(FAULT, "PyTorch", str(error))
        return
    cuda = report["cuda"]
    build = f"built for CUDA {cuda}" if cuda else "without CUDA"
    if report["rocm"]:
        build = f"built for ROCm {report['rocm']}"
    yield Finding(OK, "PyTorch", f"{report['torch']}, {build}, {report['threads']} CPU threads")
    for index, gpu in enumerate(report["gpus"]):
        text = f"{index}: {gpu['name']}, {gpu['free'] / GB:.1f} of {gpu['total'] / GB:.1f} GB free"
        yield Finding(OK, "GPU", text)
    for index, name in enumerate(report["xpus"]):
        yield Finding(OK, "GPU", f"xpu:{index}: {name}")
    if report["gpus"]:
        if not report["rocm"]:
            yield Finding(OK, "driver", f"NVIDIA {driver}")
    elif report["mps"]:
        yield Finding(OK, "device", "mps, the GPU of a Mac")
    elif driver is None:
        if not report["xpus"]:
            yield Finding(OK, "device", "CPU; no NVIDIA driver found")
    else:
        yield Finding(FAULT, "GPU", _unused_gpu(driver, cuda))


def _unused_gpu(driver: str, cuda: str | None) -> str:
    """Return why PyTorch does not use a GPU whose driver is installed."""
    if cuda is None:
        return f"PyTorch is a CPU build, but NVIDIA driver {driver} is installed: install a CUDA build (TORCH_INDEX)"
    needed = DRIVERS.get(cuda.partition(".")[0], 0)
    if int(driver.partition(".")[0]) < needed:
        return f"NVIDIA driver {driver} is too old for CUDA {cuda}: {needed} is needed, or another build of PyTorch"
    return f"NVIDIA driver {driver} is installed, but PyTorch for CUDA {cuda} finds no GPU: check CUDA_VISIBLE_DEVICES"


def _memory(_settings: "ApiSettings") -> Iterator[Finding]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = f"{total / GB:.1f} GB, {os.cpu_count()} cores"
    if limit.is_file() and (bound := limit.read_text().strip()).isdecimal():
        text += f"; this container may use {int(bound) / GB:.1f} GB"
    yield Finding(OK, "memory", text)


def _data(settings: "ApiSettings") -> Iterator[Finding]:
    folder = settings.data_dir.resolve()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        yield Finding(FAULT, "data", f"{existing} is not a folder")
        return
    if not os.access(existing, os.W_OK):
        yield Finding(FAULT, "data", f"{folder} cannot be written")
        return
    yield _disk("data", existing, str(folder) if folder.exists() else f"{folder}, created at the first start")
    if settings.store_url:
        from img2img.settings import without_password

        yield Finding(OK, "images", without_password(settings.store_url))


def _disk(name: str, path: Path, text: str) -> Finding:
    """Return a line about the free space at a path."""
    free = shutil.disk_usage(path).free
    level = FAULT if free < NO_DISK else NOTE if free < LITTLE_DISK else OK
    return Finding(level, name, f"{text}; {free / GB:.1f} GB free")


def _redis(settings: "ApiSettings") -> Iterator[Finding]:
    from redis.exceptions import RedisError

    from img2img.settings import without_password

    from ..supervisor.embedded_redis import connect, is_redis_ready
    from ..supervisor.redis_server import RedisUnavailable, find_redis_server, server_version

    if settings.redis_url:
        url = without_password(settings.redis_url)
        try:
            with connect(settings.redis_url) as redis:
                redis.ping()
            yield Finding(OK, "Redis", f"{url} responds")
        except (RedisError, ValueError) as error:
            yield Finding(FAULT, "Redis", f"{url}: {error}")
        return
    try:
        server = find_redis_server()
    except RedisUnavailable as error:
        yield Finding(FAULT, "Redis", str(error))
        return
    running = ", running" if is_redis_ready(settings.resolved_redis_url) else ""
    yield Finding(OK, "Redis", f"{server_version(server)}, {server}{running}")


def _address(settings: "ApiSettings") -> Iterator[Finding]:
    import httpx

    from ..supervisor.errors import ServeError
    from ..supervisor.supervisor import check_port

    try:
        check_port(settings.host, settings.port)
        yield Finding(OK, "address", f"{settings.local_url} is free")
    except ServeError as error:
        try:
            ready = httpx.get(f"{settings.local_url}/readyz", timeout=5, trust_env=False).json()
            state = "ready" if ready["ready"] else f"not ready: {ready['workers']['detail']}"
            yield Finding(OK, "address", f"{settings.local_url}, the service is {state}")
        except (httpx.HTTPError, ValueError, KeyError):
            yield Finding(FAULT, "address", f"{error}: another program uses it")


def _models(settings: "ApiSettings") -> Iterator[Finding]:
    if settings.models_file is None:
        yield _model(settings.model, settings.model, Path())
        return
    yield Finding(OK, "models", str(settings.models_file.resolve()))
    # The settings have checked that it can be read.
    models = tomllib.loads(settings.models_file.read_text())["models"]
    for name, model in models.items():
        yield _model(name, str(model.get("source", "")), settings.models_file.parent)


def _fit(settings: "ApiSettings") -> Iterator[Finding]:
    """Yield a line for each model whose files are here: the memory of its weights, and whether it is there."""
    if find_spec("torch") is None:
        return
    from ..supervisor.devices import model_report

    try:
        report = model_report(settings.as_environment())
    except RuntimeError as error:
        yield Finding(FAULT, "models", str(error))
        return
    for model in report["models"]:
        if "error" in model:
            # That a model is not downloaded yet is said elsewhere.
            if "is not in the cache" not in model["error"]:
                yield Finding(FAULT, "weights", model["error"])
            continue
        yield _memory_of(model, report["device"], report["free"])


def _memory_of(model: dict[str, Any], device: str, free: int) -> Finding:
    needed = model["needed"]
    text = f"{model['name']}: {needed / GB:.1f} GB of weights in {model['dtype']}, {device} has {free / GB:.1f} GB free"
    if needed <= FILLED * free:
        return Finding(OK, "weights", text)
    if model["offload"] != "none":
        return Finding(OK, "weights", f"{text}; with offload = {model['offload']}")
    smaller = "`quantize` or a `dtype` of 2 bytes makes it smaller"
    if device.startswith(("cuda", "xpu")):
        return Finding(NOTE, "weights", f"{text}: IMG2IMG_MODE=auto offloads it; {smaller}")
    return Finding(NOTE, "weights", f"{text}: it may not fit; {smaller}")


def _model(name: str, source: str, folder: Path) -> Finding:
    """Return a line about a model.

    Args:
        name: Name in requests.
        source: `demo`, a folder or a hub id.
        folder: What a relative path is relative to.
    """
    if source == "demo":
        return Finding(OK, "model", "demo, part of this installation; small landscapes and houses only")
    from img2img.domain.model_card import SINGLE_FILES, is_path

    label = name if name == source else f"{name} ({source})"
    path = folder / Path(source).expanduser()
    if is_path(source) or path.exists():
        if path.is_file() and path.suffix in SINGLE_FILES:
            return Finding(OK, "model", f"{label}: {path.stat().st_size / GB:.1f} GB")
        if any((path / name).is_file() for name in ("model_index.json", "modular_model_index.json")):
            return Finding(OK, "model", label)
        return Finding(FAULT, "model", f"{label}: {path} is not a diffusers model: it has no model_index.json")
    return _hub_model(label, source)


def _hub_model(label: str, source: str) -> Finding:
    cache = hub_cache()
    # A file in a repository has a longer name: org/name/file.safetensors.
    model = cache / "--".join(["models", *source.split("/", 2)[:2]])
    needed = "".join(source.split("/", 2)[2:]) or "model_index.json"
    size = sum(path.stat().st_size for path in model.glob("blobs/*")) / GB
    if any(model.glob("blobs/*.incomplete")):
        return Finding(NOTE, "model", f"{label}: the download is incomplete, {size:.1f} GB in {cache}")
    if any(model.glob(f"snapshots/*/{needed}")):
        return Finding(OK, "model", f"{label}: {size:.1f} GB in {cache}")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Finding(FAULT, "model", f"{label}: not in {cache}, and HF_HUB_OFFLINE is set")
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    return _disk("model", existing, f"{label}: the first start downloads it to {cache}")


def hub_cache() -> Path:
    """Return the folder of models from the hub, as huggingface_hub finds it."""
    environment = os.environ
    home = environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(environment.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _nvidia_driver() -> str | None:
    """Return the version of the NVIDIA driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else None


CHECKS: tuple[Callable[["ApiSettings"], Iterator[Finding]], ...] = (
    _python,
    _torch,
    _memory,
    _data,
    _redis,
    _address,
    _models,
    _fit,
)
