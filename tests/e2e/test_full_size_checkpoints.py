"""Checkpoints of full size in the original key layout, served offline from the file alone: `make test-checkpoints`."""

import io
import json
import math
import os
import resource
import sys
import time
from pathlib import Path
from threading import Event, Thread

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from img2img import Client
from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import Scheduler
from img2img.worker.engine.engine import Engine
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.model import load_model
from tests.support.engines import run_on
from tests.support.models.single_files import write_header
from tests.support.serving import serving
from tests.support.specs import make_spec

pytestmark = [
    pytest.mark.skipif(not os.environ.get("TEST_CHECKPOINTS"), reason="writes 7 GB; run `make test-checkpoints`"),
    pytest.mark.timeout(1800),
]
# Values of the weights. Tensors are parts of their repetition.
VALUES = 2**20


def write_random_checkpoint(kind: str, file: Path, folder: Path) -> None:
    """Write a file of a kind in float16, tensor after tensor, so that it needs no memory."""
    write_header(kind, file, folder)
    values = (torch.randn(VALUES, generator=torch.Generator().manual_seed(1)) * 0.02).half().numpy().tobytes()
    with safe_open(file, framework="pt") as opened:
        shapes = {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118  # not a dict
    with file.open("r+b") as written:
        header = json.loads(written.read(start := int.from_bytes(written.read(8), "little")))
        for key, shape in shapes.items():
            first, end = header[key]["data_offsets"]
            written.seek(8 + start + first)
            if len(shape) == 1:
                # Norms and biases leave the size of activations as it is.
                written.write(np.float16(key.endswith(".weight")).tobytes() * shape[0])
            else:
                written.write((values * math.ceil((end - first) / len(values)))[: end - first])


class PeakMemory:
    """The largest resident size of the processes that this one has started, in bytes."""

    def __enter__(self) -> "PeakMemory":
        self.bytes = 0
        self._stop = Event()
        self._thread = Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                try:
                    self.bytes = max(self.bytes, process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue


def test_stable_diffusion_is_served_offline_from_the_file_alone(tmp_path: Path) -> None:
    """The whole service, which also warms up at 512 x 512 pixels."""
    side = 256
    file = tmp_path / "photo.safetensors"
    write_random_checkpoint("v1", file, tmp_path / "configuration")
    models = tmp_path / "models.toml"
    models.write_text(f'[models.photo]\nsource = "{file.name}"\n')
    image = io.BytesIO()
    Image.effect_noise((side, side), 64).convert("RGB").save(image, "PNG")
    settings = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "empty"),
        "OMP_NUM_THREADS": str(os.cpu_count()),
        "IMG2IMG_DEVICE": "cpu",
    }
    started = time.monotonic()
    log = tmp_path / "log"
    try:
        with (
            PeakMemory() as memory,
            serving(tmp_path / "data", models, "--models-file", log=log, **settings) as client,
        ):
            loaded = time.monotonic()
            card = client.get("/models").json()["models"][0]
            assert card["name"] == "photo"
            assert "img2img" in card["tasks"]
            with Client(str(client.base_url)) as service:
                [png] = service.generate(
                    image=image.getvalue(),
                    prompt="a photo of a cat",
                    width=side,
                    height=side,
                    num_inference_steps=1,
                    strength=1.0,
                    guidance_scale=1.0,
                    timeout_s=900,
                )
            pixels = np.asarray(Image.open(io.BytesIO(png)))
            assert pixels.shape == (side, side, 3)
            assert pixels.std() > 1, "a VAE that gets NaN gives one colour"
            sys.stdout.write(
                f"\nv1: {file.stat().st_size / 1e9:.1f} GB, float32: ready after {loaded - started:.0f} s, "
                f"one step after {time.monotonic() - loaded:.0f} s more, at most {memory.bytes / 1e9:.1f} GB resident\n"
            )
    finally:
        file.unlink()
        sys.stdout.write(log.read_text()[-2000:] if log.exists() else "")


def test_stable_diffusion_xl_is_denoised_offline_from_the_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine without the service, whose warm-up at 1024 x 1024 pixels takes long on a CPU."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    file, side = tmp_path / "photo.safetensors", 512
    write_random_checkpoint("xl_base", file, tmp_path / "configuration")
    started = time.monotonic()
    try:
        model = load_model(ModelConfig(name="photo", source=str(file), dtype="bfloat16"), device="cpu")
        loaded = time.monotonic()
        spec = make_spec(
            prompt="a photo of a cat",
            width=side,
            height=side,
            num_inference_steps=1,
            strength=1.0,
            guidance_scale=1.0,
            scheduler=Scheduler.EULER,
        )
        image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
        [pixels] = run_on(Engine(slots=1), model, [(spec, Inputs(image))])
        assert pixels.shape == (side, side, 3)
        assert pixels.std() > 1
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        sys.stdout.write(
            f"\nxl_base: {file.stat().st_size / 1e9:.1f} GB, bfloat16: loaded after {loaded - started:.0f} s, "
            f"one step after {time.monotonic() - loaded:.0f} s more, at most {peak / 1e9:.1f} GB resident\n"
        )
    finally:
        file.unlink()
