"""NVIDIA's AIPerf against this service and a LitServe server: edits with OpenAI's API, at several concurrencies.

    python -m benchmarks.aiperf --aiperf PATH                   # minutes; both mixes of jobs: a quarter of an hour
    python -m benchmarks.aiperf --aiperf PATH --concurrency 1 4 --json FILE    # a part; the file keeps all parts

AIPerf is not a dependency of the project. Install it into an environment of its own:

    python -m venv aiperf && aiperf/bin/pip install aiperf==0.13.0

Both servers have the same model, size, threads, requests and largest batch, and run in turns: the idle one is stopped.
Requests are the jobs of `benchmarks.workload`, in a file in AIPerf's format `single_turn`: each has a prompt, an image,
and, under `extra`, form fields of its own (strength, steps, guidance, scheduler, seed). Each is sent once, so no server
remembers its image or prompt.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.resources import files
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from benchmarks.plot import draw
from benchmarks.sides import litserve
from benchmarks.workload import MIXES, OWN_FIELDS, Job, jobs, served_card
from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port, running
from img2img.domain.model_card import ModelCard

INSTALL = "python -m venv aiperf && aiperf/bin/pip install aiperf==0.13.0"
OURS, THEIRS = "img2img", "LitServe"
WEIGHTS = files("img2img.demo_model") / "weights"
LEAST_REQUESTS = 8
WARM_UP_REQUESTS = 4
RESULT_FILE = "profile_export_aiperf.json"


@dataclass(frozen=True)
class Row:
    """The measurement of a server at a concurrency. Latencies are those of requests, in milliseconds."""

    mix: str
    concurrency: int
    server: str
    requests: int
    errors: int
    per_s: float
    p50: float
    p90: float
    p99: float

    @property
    def key(self) -> tuple[str, int, str]:
        return self.mix, self.concurrency, self.server


@dataclass(frozen=True)
class Server:
    """A running server. `resumed` lets it run while the context lasts."""

    name: str
    url: str
    resumed: Callable[[], AbstractContextManager[None]]


def main() -> None:
    options = _parse()
    program = shutil.which(options.aiperf)
    if program is None:
        raise SystemExit(f"AIPerf is not installed as {options.aiperf}. Install it ({INSTALL}), and pass --aiperf PATH")
    rows = _rows_of(options.json)
    configuration = _configuration(options, program)
    with TemporaryDirectory(prefix="i2i-") as folder, ExitStack() as stack:
        servers, card = _start(options, Path(folder), stack)
        for server in servers:
            with server.resumed():
                _warm_up(server, jobs("mixed", card, WARM_UP_REQUESTS, 0, side=options.size))
        for number, (mix, concurrency) in enumerate(product(options.mixes, options.concurrency), start=1):
            count = max(LEAST_REQUESTS, options.requests * concurrency)
            work = jobs(mix, card, count, number, side=options.size)
            requests = write_requests(Path(folder) / f"requests-{number}", work)
            for server in servers:
                _log(f"{mix} jobs, {concurrency} at once, {count} requests: {server.name}")
                output = Path(folder) / f"results-{number}-{server.name}"
                with server.resumed():
                    _run(_command(program, server, requests, count, concurrency, output))
                row = read_result(output / RESULT_FILE, mix, concurrency, server.name)
                rows[row.key] = row
                _log(table([row])[-1])
                if options.json:
                    content = {"configuration": configuration, "rows": [asdict(row) for row in rows.values()]}
                    options.json.write_text(json.dumps(content, indent=2) + "\n")
    ordered = [rows[key] for key in sorted(rows, key=lambda key: (list(MIXES).index(key[0]), key[1], key[2] != OURS))]
    if options.plot:
        draw(options.plot, bars(ordered), f"{THEIRS} at the lowest concurrency")
    print("\n".join([*table(ordered), "", *(f"- {name}: {value}" for name, value in configuration.items())]))


def _rows_of(file: Path | None) -> dict[tuple[str, int, str], Row]:
    """Return the results that a file has."""
    if file is None or not file.exists():
        return {}
    return {row.key: row for row in (Row(**row) for row in json.loads(file.read_text())["rows"])}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aiperf", default="aiperf", help="the program")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES))
    parser.add_argument(
        "--requests", type=int, default=2, help=f"for each one in flight; at least {LEAST_REQUESTS} in all"
    )
    parser.add_argument("--size", type=int, default=128, help="pixels of each side of the images")
    parser.add_argument("--slots", type=int, default=16, help="jobs in flight in the worker, and LitServe's batches")
    parser.add_argument("--json", type=Path, help="add the results to this file, and print all that it has")
    parser.add_argument("--plot", type=Path, help="draw images per second to this SVG or PNG file")
    return parser.parse_args()


def _start(options: argparse.Namespace, folder: Path, stack: ExitStack) -> tuple[list[Server], ModelCard]:
    """Start both servers. Return them, and the card of the model."""
    _log("starting img2img serve")
    settings = ApiSettings(
        _env_file=None, data_dir=folder / "data", model="demo", slots=options.slots, port=free_port()
    )
    os.environ["IMG2IMG_DEVICE"] = "cpu"
    # AIPerf uses the same cores: threads of a model that wait for each other in a loop would take them from it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    stack.enter_context(running(settings))
    with httpx.Client(base_url=settings.local_url, trust_env=False) as http:
        card = served_card(http)
    _log("starting LitServe")
    theirs = stack.enter_context(litserve(str(WEIGHTS), options.slots, options.slots, _cores(), api="edits"))
    return [Server(OURS, settings.local_url, nullcontext), Server(THEIRS, theirs.url, theirs.resumed)], card


def _warm_up(server: Server, work: Sequence[Job]) -> None:
    with httpx.Client(base_url=server.url, timeout=None, trust_env=False) as http:
        for job in work:
            form = {"model": "demo", "prompt": job.spec.prompt, **fields_of(job)}
            response = http.post("/v1/images/edits", data=form, files={"image": ("image.png", job.png, "image/png")})
            if response.is_error:
                raise SystemExit(f"{server.name} responded with {response.status_code}: {response.text}")


def fields_of(job: Job) -> dict[str, str]:
    """Return the form fields of a job beside prompt and image."""
    fields = {name: str(getattr(job.spec, name)) for name in OWN_FIELDS}
    return {**fields, "size": f"{job.spec.width}x{job.spec.height}"}


def write_requests(folder: Path, work: Sequence[Job]) -> Path:
    """Write jobs as a file of AIPerf's format `single_turn`, and their images beside it. Return the file."""
    folder.mkdir()
    lines = []
    for i, job in enumerate(work):
        image = folder / f"{i}.png"
        image.write_bytes(job.png)
        lines.append(json.dumps({"text": job.spec.prompt, "image": str(image), "extra": fields_of(job)}) + "\n")
    file = folder / "requests.jsonl"
    file.write_text("".join(lines))
    return file


def _command(program: str, server: Server, requests: Path, count: int, concurrency: int, output: Path) -> list[str]:
    options = {
        "model": "demo",
        # AIPerf counts the words of prompts. Its own tokenizer would be downloaded.
        "tokenizer": str(WEIGHTS / "tokenizer"),
        "url": server.url,
        "endpoint-type": "image_edit",
        "input-file": str(requests),
        "custom-dataset-type": "single_turn",
        "request-count": str(count),
        "concurrency": str(concurrency),
        "random-seed": "1",
        "artifact-dir": str(output),
        "ui": "none",
    }
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    return [program, "profile", *given, "--no-server-metrics", "--no-gpu-telemetry"]


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"AIPerf exited with {done.returncode}:\n{done.stdout[-3000:]}")


def read_result(file: Path, mix: str, concurrency: int, server: str) -> Row:
    """Read the file that AIPerf writes about a run.

    Raises:
        SystemExit: No request succeeded.
    """
    result: Mapping[str, Any] = json.loads(file.read_text())
    errors = int(result["error_request_count"]["avg"]) if result.get("error_request_count") else 0
    if not result.get("request_count"):
        raise SystemExit(f"{server}: all {errors} requests failed: {result.get('error_summary')}")
    latency = result["request_latency"]
    return Row(
        mix=mix,
        concurrency=concurrency,
        server=server,
        requests=int(result["request_count"]["avg"]),
        errors=errors,
        per_s=result["request_throughput"]["avg"],
        p50=latency["p50"],
        p90=latency["p90"],
        p99=latency["p99"],
    )


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a Markdown table."""
    by_key = {row.key: row for row in rows}
    lines = [
        "| jobs | at once | server | requests | errors | images/s | vs LitServe | latency p50 | p90 | p99 |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        peer = by_key.get((row.mix, row.concurrency, THEIRS))
        ratio = f"{row.per_s / peer.per_s:.2f}x" if peer else ""
        latencies = " | ".join(f"{ms / 1000:.2f} s" for ms in (row.p50, row.p90, row.p99))
        lines.append(
            f"| {row.mix} | {row.concurrency} | {row.server} | {row.requests} | {row.errors} | {row.per_s:.2f} "
            f"| {ratio} | {latencies} |"
        )
    return lines


def bars(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Return images per second by server and level, relative to LitServe at the lowest concurrency of the mix."""
    references = {row.mix: row.per_s for row in reversed(rows) if row.server == THEIRS}
    results: dict[str, dict[str, dict[str, float]]] = {OURS: {}, THEIRS: {}}
    for row in rows:
        result = {"images_per_s": row.per_s, "ratio": row.per_s / references[row.mix]}
        results[row.server][f"{row.mix} jobs, {row.concurrency} at once"] = result
    return results


def _configuration(options: argparse.Namespace, program: str) -> dict[str, str]:
    aiperf = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "machine": f"{_cores()} CPU cores ({platform.machine()}) for server and AIPerf, {_cores()} torch threads",
        "versions": f"AIPerf {aiperf}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "litserve")),
        "model": f"demo, {options.size} x {options.size}, float32",
        **{f"{mix} jobs": MIXES[mix] for mix in options.mixes},
        OURS: f"img2img serve, {options.slots} slots",
        THEIRS: f"dynamic batching, max_batch_size {options.slots}; requests that share all parameters are one call",
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
