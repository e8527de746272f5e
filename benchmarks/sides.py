"""The sides of the throughput benchmark: each takes jobs with PNGs and returns PNGs."""

import base64
import inspect
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from queue import SimpleQueue
from typing import Any, Literal

import httpx
import numpy as np
import torch
from diffusers import AutoPipelineForImage2Image
from PIL import Image

from benchmarks.workload import Job
from img2img.worker.engine import output_memory
from img2img.worker.engine.engine import Engine
from img2img.worker.images.png import encode_png
from img2img.worker.pipelines.model import Model
from img2img.worker.pipelines.schedulers import make_scheduler
from img2img.worker.runner import JobRunner, Rendering


class Stock:
    """The stock diffusers pipeline for image-to-image, called directly."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        pipeline.set_progress_bar_config(disable=True)
        self._scheduler = pipeline.scheduler
        # Pipelines that do not take the size of the image.
        self._takes_size = "height" in inspect.signature(pipeline.__call__).parameters

    @classmethod
    def from_folder(cls, folder: str, *, compiled: bool = False) -> "Stock":
        """Load a pipeline in float32.

        Args:
            compiled: compile the UNet with `torch.compile`.
        """
        pipeline = AutoPipelineForImage2Image.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        if compiled:
            pipeline.unet = torch.compile(pipeline.unet)
        return cls(pipeline)

    @property
    def parameters(self) -> dict[str, int]:
        """Sizes of its modules."""
        modules = {name: self._pipeline.components[name] for name in ("unet", "vae", "text_encoder")}
        return {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}

    def one_by_one(self, jobs: Sequence[Job]) -> list[bytes]:
        return [self.call([job])[0] for job in jobs]

    def call(self, jobs: Sequence[Job]) -> list[bytes]:
        """Run jobs that differ only in image, prompt and seed in one pipeline call."""
        spec = jobs[0].spec
        self._pipeline.scheduler = make_scheduler(spec.scheduler, self._scheduler)
        size = {"width": spec.width, "height": spec.height} if self._takes_size else {}
        images = self._pipeline(
            prompt=[job.spec.prompt for job in jobs],
            image=[Image.open(BytesIO(job.png)) for job in jobs],
            strength=spec.strength,
            num_inference_steps=spec.num_inference_steps,
            guidance_scale=spec.guidance_scale,
            generator=[torch.Generator("cpu").manual_seed(job.spec.seed) for job in jobs],
            **size,
        ).images
        return [encode_png(np.asarray(image), {}) for image in images]


def in_engine(model: Model, slots: int, jobs: Sequence[Job]) -> list[bytes]:
    """Run jobs on this project's engine as a worker does: the engine in one thread, PNGs are read and made in others.

    What gates remember of earlier calls is forgotten: another number of slots may have had the same jobs.
    """
    forget_outputs()
    engine = Engine(slots=slots)
    runner = JobRunner(engine)
    ended: SimpleQueue[int | None] = SimpleQueue()  # indices; None: loading failed
    renderings: list[Rendering] = []
    pngs: dict[int, bytes] = {}

    def load() -> None:
        torch.set_num_threads(1)
        try:
            for i, job in enumerate(jobs):
                renderings.append(runner.prepare(job.spec, {job.spec.inputs[0]: job.png}, [0], model))
                renderings[i].start(partial(ended.put, i))
        except BaseException:
            ended.put(None)
            raise
        finally:
            engine.shut_down()

    def finish() -> None:
        while len(pngs) < len(jobs) and (i := ended.get()) is not None:
            pngs[i] = renderings[i].render()[0].png

    with ThreadPoolExecutor(2) as threads:
        others = [threads.submit(load), threads.submit(finish)]
        engine.run()
        for other in others:
            other.result()
    return [pngs[i] for i in range(len(jobs))]


def forget_outputs() -> None:
    """Forget the prompts and images that the gates of this process remember."""
    for memory in list(output_memory._memories):
        memory._outputs.clear()


class LitServe:
    """A LitServe server in its processes, with clients that keep `clients` requests in flight."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], clients: int) -> None:
        self.url = url
        self._process = process
        self._clients = clients

    def __call__(self, jobs: Sequence[Job]) -> list[bytes]:
        with (
            self.resumed(),
            httpx.Client(base_url=self.url, timeout=None) as http,
            ThreadPoolExecutor(self._clients) as clients,
        ):
            return list(clients.map(partial(_request, http), jobs))

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Let its processes run while the context lasts."""
        os.killpg(self._process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            self.pause()

    def pause(self) -> None:
        """Stop its processes with SIGSTOP: an idle LitServe worker uses CPU time for polling."""
        os.killpg(self._process.pid, signal.SIGSTOP)


def _request(http: httpx.Client, job: Job) -> bytes:
    payload = {"image": base64.b64encode(job.png).decode(), "spec": job.spec.model_dump(mode="json")}
    return base64.b64decode(http.post("/predict", json=payload).raise_for_status().json()["image"])


@contextmanager
def litserve(
    folder: str, max_batch_size: int, clients: int, threads: int, api: Literal["predict", "edits"] = "predict"
) -> Iterator[LitServe]:
    """Start a server and pause it until its first call."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [folder, str(max_batch_size), str(threads), str(port), api]
    command = [sys.executable, "-m", "benchmarks.litserve_server", *arguments]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while not _is_healthy(url):
            if process.poll() is not None:
                raise SystemExit("the LitServe server did not start")
            time.sleep(0.2)
        server = LitServe(url, process, clients)
        server.pause()
        yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.TransportError:
        return False
