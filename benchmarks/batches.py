"""Submitting a batch of jobs: time and memory of the API server. Real HTTP, a real Redis, no worker.

python -m benchmarks.batches
"""

import argparse
import json
import os
import time
from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image

from benchmarks.api_server import run_api_server
from img2img.domain.job_batch import MAX_JOBS

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[100, 1_000, MAX_JOBS], help="jobs of each batch")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    options = parser.parse_args()
    with run_api_server() as service, httpx.Client(base_url=service.url, timeout=300) as http:
        image = _upload(http)
        # The first request loads what all others need.
        http.post("/batches", json={"request": {"image": image}}).raise_for_status()
        results = [_submit(http, image, jobs, service.api_pid) for jobs in options.jobs]
    print("| jobs | submit | processor time | memory before | peak |\n|---:|---:|---:|---:|---:|")
    for one in results:
        memory = f"{one['before'] / MIB:.0f} MiB | {one['peak'] / MIB:.0f} MiB"
        print(f"| {one['jobs']:,} | {one['s']:.2f} s | {one['cpu_s']:.2f} s | {memory} |")
    print(f"\n{len(os.sched_getaffinity(0))} CPU cores, shared by all processes; load {os.getloadavg()[0]:.1f}.")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def _upload(http: httpx.Client) -> str:
    buffer = BytesIO()
    Image.linear_gradient("L").resize((512, 512)).convert("RGB").save(buffer, "PNG")
    response = http.post("/images", files={"image": buffer.getvalue()})
    response.raise_for_status()
    return str(response.json()["sha256"])


def _submit(http: httpx.Client, image: str, jobs: int, pid: int) -> dict[str, float]:
    """Submit a batch. Returns the seconds, and processor time and bytes of memory of the API server."""
    lines = (
        json.dumps({"image": image, "prompt": f"a house, number {index}", "seed": index, "name": f"photo-{index}"})
        for index in range(jobs)
    )
    body = "\n".join(lines).encode()
    before = _memory(pid, "VmRSS")
    cpu_s, started_at = _cpu_s(pid), time.perf_counter()
    response = http.post("/batches", content=body, headers={"Content-Type": "application/jsonl"})
    seconds = time.perf_counter() - started_at
    response.raise_for_status()
    if response.json()["counts"]["queued"] != jobs:
        raise SystemExit(f"not all of {jobs} jobs are queued: {response.text}")
    used_s = _cpu_s(pid) - cpu_s
    return {"jobs": jobs, "s": seconds, "cpu_s": used_s, "before": before, "peak": _memory(pid, "VmHWM")}


def _cpu_s(pid: int) -> float:
    """Return the seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int, name: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
