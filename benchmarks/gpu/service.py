"""The whole service with a model of random weights: what it adds to the time in the engine."""

import os
import time
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.gpu.budget import Budget
from benchmarks.gpu.report import Report
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.target import Target
from benchmarks.workload import jobs, served_card

JOBS = 64
FIELDS = ("prompt", "seed", "width", "height", "strength", "num_inference_steps", "guidance_scale", "scheduler")


def run(target: Target, shape: Shape, budget: Budget, report: Report, in_flight: int) -> None:
    """Send uploads so that as many jobs as there are slots are open, and compare their time with that in the engine."""
    # These packages are not needed for the other parts.
    import httpx

    from img2img.app.settings import ApiSettings
    from img2img.app.supervisor.supervisor import free_port, running

    with TemporaryDirectory(prefix="i2i-") as folder:
        model = Path(folder) / shape.name
        pipeline = target.pipeline(shape, shape.dtype)
        pipeline.to("cpu").save_pretrained(model)
        del pipeline
        target.release()
        os.environ["IMG2IMG_DEVICE"] = target.device.type
        settings = ApiSettings(
            _env_file=None, data_dir=Path(folder) / "data", model=str(model), slots=in_flight, port=free_port()
        )
        begun = time.monotonic()
        with running(settings) as service, httpx.Client(base_url=settings.local_url, trust_env=False) as http:
            ready_s = time.monotonic() - begun
            card = served_card(http)
            side = target.side(shape)
            work = jobs("uniform", card, JOBS, 1, parameters=lambda _rng: shape.uniform, side=side)
            views: list[dict[str, Any]] = []
            open_jobs: list[str] = []
            start = time.monotonic()
            # One round also if the start has taken all the time.
            least = len(work) - in_flight
            while (work and (budget.left > 0 or len(work) > least)) or open_jobs:
                service.tick()
                while work and len(open_jobs) < 2 * in_flight and (budget.left > 0 or len(work) > least):
                    job = work.pop()
                    data = {name: str(getattr(job.spec, name)) for name in FIELDS}
                    response = http.post("/img2img", files={"image": job.png}, data=data, timeout=60)
                    open_jobs.append(response.raise_for_status().json()["id"])
                time.sleep(0.02)
                for name in open_jobs[:in_flight]:
                    view = http.get(f"/jobs/{name}", timeout=60).raise_for_status().json()
                    if view["status"] in ("failed", "cancelled"):
                        raise RuntimeError(f"job {name}: {view['error']}")
                    if view["status"] == "succeeded":
                        open_jobs.remove(name)
                        views.append(view)
            seconds = time.monotonic() - start
    stages = sorted({stage for view in views for stage in view["timings"]})
    rows = [{"stage": stage, **_quantiles([view["timings"].get(stage, 0.0) for view in views])} for stage in stages]
    rows.append({"stage": "from submit to end", **_quantiles([_seconds(view) for view in views])})
    report.table(f"Service: {shape.name}, {len(views)} jobs, {in_flight} slots", rows)
    report.note(
        f"{shape.name}: the service was ready after {ready_s:.0f} s and made {len(views) / seconds:.2f} images/s"
    )


def _seconds(view: dict[str, Any]) -> float:
    """Return the time from the submit of a job to its end."""
    end, begin = (datetime.fromisoformat(view[name]) for name in ("finished_at", "created_at"))
    return (end - begin).total_seconds()


def _quantiles(seconds: list[float]) -> dict[str, float]:
    return {f"ms p{p}": 1e3 * float(np.percentile(seconds, p)) for p in (50, 95)}
