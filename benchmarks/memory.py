"""Memory and loss of `dtype`, `quantize`, `offload` and `vae_tiling`: `python -m benchmarks.memory` prints tables.

- Loss: images of the demo model, compared with those in float32.
- Weights: resident bytes of a worker with a model of the size of Stable Diffusion 1 and random weights.
- Large images: the most resident bytes while the VAE of the demo model encodes and decodes an image of 2048 x 2048.

Each line is measured in a process of its own. Resident bytes are without those of the libraries.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from benchmarks import workload
from benchmarks.sides import in_engine
from img2img.domain.model_card import ModelCard
from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import Scheduler
from img2img.domain.spec import Img2ImgSpec
from img2img.worker.engine.task import EngineTask
from img2img.worker.images.inputs import Inputs
from img2img.worker.images.png import decode_png
from img2img.worker.pipelines.denoise import make_task_function
from img2img.worker.pipelines.loading.checkpoint_layouts import LAYOUTS
from img2img.worker.pipelines.loading.locations import components
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.runtime.allocator import configure_malloc, trim_malloc
from img2img.worker.runtime.memory_meter import CpuMeter

GB, MB = 1e9, 1e6
JOBS = 12
LARGE = 2048

LOSSES: tuple[Mapping[str, Any], ...] = (
    {},
    {"quantize": "int8"},
    {"quantize": "fp8"},
    {"dtype": "bfloat16"},
    {"dtype": "bfloat16", "quantize": "int8"},
    {"dtype": "bfloat16", "quantize": "fp8"},
    {"vae_tiling": True},
)
WEIGHTS: tuple[Mapping[str, Any], ...] = (
    {},
    {"quantize": "int8"},
    {"dtype": "bfloat16"},
    {"dtype": "bfloat16", "quantize": "int8"},
    {"dtype": "bfloat16", "quantize": "fp8"},
    {"dtype": "bfloat16", "offload": "group"},
    {"dtype": "bfloat16", "offload": "layers"},
)
LARGE_IMAGES: tuple[Mapping[str, Any], ...] = ({}, {"vae_tiling": True}, {"vae_tiling": "auto"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["loss", "weights", "large"], help="print one table only")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        task = json.loads(arguments.measure)
        print(json.dumps(MEASURES[task["table"]](task["folder"], task["keys"])))
        return
    with tempfile.TemporaryDirectory() as folder:
        for table, cases in (("loss", LOSSES), ("weights", WEIGHTS), ("large", LARGE_IMAGES)):
            if arguments.only in (None, table):
                _print_table(table, cases, Path(folder))


def _print_table(table: str, cases: tuple[Mapping[str, Any], ...], folder: Path) -> None:
    if table == "weights":
        write_random_model(folder / "model")
    print(f"\n{TITLES[table]}\n|---|{'---|' * (TITLES[table].count('|') - 2)}", flush=True)
    for keys in cases:
        more = {"offload_folder": str(folder / "offloaded")} if "offload" in keys else {}
        task = {"table": table, "folder": str(folder), "keys": {**keys, **more}}
        command = [sys.executable, "-m", "benchmarks.memory", "--measure", json.dumps(task)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        cells = json.loads(done.stdout.splitlines()[-1])
        label = ", ".join(f"`{name} = {json.dumps(value)}`" for name, value in keys.items()) or "float32"
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


def measure_loss(_folder: str, keys: Mapping[str, Any]) -> list[str]:
    """Compare images with those in float32, and images in company with those alone."""
    reference, model = load_demo({}), load_demo(keys)
    jobs = workload.jobs("mixed", model.card, JOBS, 1)
    expected = [_pixels(png) for png in in_engine(reference, JOBS, jobs)]
    together = [_pixels(png) for png in in_engine(model, JOBS, jobs)]
    alone = [_pixels(in_engine(model, 1, [job])[0]) for job in jobs]
    difference = np.abs(np.stack(alone) - np.stack(expected))
    mean, high = difference.mean(), np.percentile(difference, 99)
    company = np.abs(np.stack(alone) - np.stack(together)).max()
    return [f"{mean:.2f}", f"{high:.0f}", f"{difference.max():.0f}", f"{company:.0f}"]


def measure_weights(folder: str, keys: Mapping[str, Any]) -> list[str]:
    """Measure resident bytes at most while an image of 256 x 256 gets one step, and after it."""
    before = resident_bytes()
    model = load_model(_config(f"{folder}/model", keys), device="cpu")
    trim_malloc()
    loaded = resident_bytes() - before
    # Weights are mapped from their files until they are used, so that they count only then.
    _, used = CpuMeter().measure(lambda: _run(model, 256, strength=1.0))
    trim_malloc()
    idle, peak = resident_bytes() - before, loaded + used
    model.close()
    return [f"{idle / GB:.2f} GB", f"{peak / GB:.2f} GB"]


def measure_large_image(_folder: str, keys: Mapping[str, Any]) -> list[str]:
    """Measure the memory of encoding and decoding a large image, without the weights."""
    model = load_demo(keys)
    # At strength 0 there is no denoising.
    pixels, used = CpuMeter().measure(lambda: _run(model, LARGE, strength=0.0))
    reference = _run(load_demo({}), LARGE, strength=0.0) if keys else pixels
    difference = (pixels - reference).abs() * 255
    return [f"{used / MB:.0f} MB", f"{difference.mean().item():.2f}", f"{difference.max().item():.0f}"]


MEASURES: Mapping[str, Callable[[str, Mapping[str, Any]], list[str]]] = {
    "loss": measure_loss,
    "weights": measure_weights,
    "large": measure_large_image,
}
TITLES = {
    "loss": "| keys | mean difference | 99 % of values | largest | in company and alone |",
    "weights": "| keys | idle | at most, during an image of 256 x 256 |",
    "large": f"| keys | VAE, {LARGE} x {LARGE} | mean difference | largest |",
}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def load_demo(keys: Mapping[str, Any]) -> Model:
    """Load the demo model without its companions."""
    return load_model(_config(str(files("img2img.demo_model") / "weights"), keys), device="cpu")


def _config(source: str, keys: Mapping[str, Any]) -> ModelConfig:
    return ModelConfig.model_validate({"name": "model", "source": source, **keys})


def _pixels(png: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.asarray(decode_png(png), dtype=np.int64)


@torch.inference_mode()
def _run(model: Model, size: int, *, strength: float) -> torch.Tensor:
    """Run a job of one step outside of an engine."""
    function = make_task_function(model, _spec(model.card, size, strength), Inputs(_image(size)), 0)
    output: torch.Tensor = function(EngineTask(function, lambda _task: None))
    return output


def _spec(card: ModelCard, size: int, strength: float) -> Img2ImgSpec:
    return Img2ImgSpec(
        model=card.name,
        image="0" * 64,
        prompt="a house",
        width=size,
        height=size,
        strength=strength,
        num_inference_steps=1,
        guidance_scale=5.0,
        scheduler=Scheduler.EULER,
        seed=1,
    )


def _image(size: int) -> torch.Tensor:
    cells = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(cells, size=(size, size), mode="bicubic").clamp(0, 1)


def write_random_model(folder: Path) -> None:
    """Write a model of the size of Stable Diffusion 1 with random weights in float32."""
    layout = LAYOUTS["v1"]
    layout.write(folder, in_channels=4)
    for name, (library, class_name) in components(json.loads((folder / "model_index.json").read_text())).items():
        module: Any = None
        if library == "transformers" and name in layout.text_encoders:
            config = transformers.CLIPTextConfig.from_pretrained(folder / name)
            module = getattr(transformers, class_name)(config)
        elif library == "diffusers" and name != "scheduler":
            config = json.loads((folder / name / "config.json").read_text())
            module = getattr(diffusers, class_name).from_config(config)
        if module is not None:
            module.save_pretrained(folder / name)
    for name, tokenizer in layout.tokenizers.items():
        tokenizer.make().save_pretrained(folder / name)


if __name__ == "__main__":
    configure_malloc()
    main()
