"""Cost of requests in the API server: real HTTP, a real Redis, no worker.

    python -m benchmarks.submit

1. A submit, compared with decoding and re-encoding its image, which every API server must do: in this process, and in
   a sandboxed decoder as the API server does. Measured in turns.
2. Polling 1,000 jobs with 10 and with 100,000 jobs queued: two services next to each other, polled in turns.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from statistics import median

import httpx
import numpy as np
from PIL import Image

from benchmarks.api_server import CARD, ApiServer, run_api_server
from img2img.domain.geometry import nearest_bucket
from img2img.domain.parameters import Resize
from img2img.imaging.decode import EncodedImage, encode_png
from img2img.imaging.sandbox_limits import SandboxLimits
from img2img.imaging.sandbox_pool import DecoderPool, SandboxedImage

IMAGES = {"PNG 512x512": ("PNG", 512, 512), "JPEG 1600x1200": ("JPEG", 1600, 1200)}
POLLED = 1_000
MAX_PIXELS = 50_000_000
WARM_UP = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--submits", type=int, default=60, help="submits per kind of image")
    parser.add_argument(
        "--queued", type=int, nargs=2, default=[10, 100_000], help="jobs queued while others are polled"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of polling; the fastest counts")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    options = parser.parse_args()
    # SIGTERM raises, so that processes are stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with run_api_server() as service:
        submits = {name: _submits(service, options.submits, *image) for name, image in IMAGES.items()}
    polls = _polls(*options.queued, options.rounds)
    print(_markdown(submits, polls))
    if options.json:
        options.json.write_text(json.dumps({"submits": submits, "polls": polls}, indent=2) + "\n")


def _submits(service: ApiServer, count: int, kind: str, width: int, height: int) -> dict[str, float]:
    """Return medians in milliseconds. No image is sent twice, because the blob store would have it already."""
    images = [_photo(seed, kind, width, height) for seed in range(WARM_UP + count)]
    # The server closes connections that were idle while the images were made.
    service.disconnect()
    submit_ms, decode_ms, sandbox_ms = [], [], []
    decoders = DecoderPool(SandboxLimits(MAX_PIXELS, max_bytes=len(max(images, key=len))))
    for data in images:
        body = httpx.Request("POST", service.url, files={"image": data}, data={"prompt": "a house", "strength": "0.6"})
        body.read()
        submit_ms.append(_ms(lambda body=body: service.post("/img2img", body.content, body.headers["content-type"])))
        decode_ms.append(_ms(lambda data=data: _fit_and_encode(EncodedImage(data, MAX_PIXELS))))
        sandbox_ms.append(_ms(lambda data=data: _fit_and_encode_in_sandbox(decoders, data)))
    decoders.close()
    submit, decode, sandbox = (median(times[WARM_UP:]) for times in (submit_ms, decode_ms, sandbox_ms))
    return {
        "submit_ms": submit,
        "decode_ms": decode,
        "sandbox_ms": sandbox,
        "added_ms": submit - decode,
        "added_per_decode": (submit - decode) / decode,
        "sandbox_per_decode": sandbox / decode,
    }


def _fit_and_encode_in_sandbox(decoders: DecoderPool, data: bytes) -> None:
    with decoders.open(data) as image:
        _fit_and_encode(image)


def _fit_and_encode(upload: EncodedImage | SandboxedImage) -> None:
    encode_png(upload.fit(*nearest_bucket(CARD.sizes, *upload.size), Resize.CROP))


def _polls(few: int, many: int, rounds: int) -> dict[str, float]:
    """Return the milliseconds of the fastest round, by number of queued jobs."""
    with run_api_server() as short, run_api_server() as long:
        services = {few: short, many: long}
        jobs = {queued: service.fill(POLLED, queued) for queued, service in services.items()}
        _log(f"polling {POLLED} jobs with {few} and with {many} jobs queued")
        spent: dict[int, list[float]] = {few: [], many: []}
        for _ in range(rounds):
            for queued, service in services.items():
                # The server may have closed the idle connection.
                service.disconnect()
                spent[queued].append(_ms(lambda s=service, ids=jobs[queued]: [s.get(f"/jobs/{i}") for i in ids]))
    return {str(queued): min(times) for queued, times in spent.items()}


def _photo(seed: int, kind: str, width: int, height: int) -> bytes:
    """Return an image of smooth colours with noise, which compresses about as well as a photograph."""
    rng = np.random.default_rng(seed)
    colours = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, 3, (height, width, 1))
    buffer = BytesIO()
    Image.fromarray((np.asarray(colours) + grain).clip(0, 255).astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def _ms(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1000


def _markdown(submits: dict[str, dict[str, float]], polls: dict[str, float]) -> str:
    lines = ["| image | submit | decode and re-encode | in a decoder process | added in total | ratio |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for name, r in submits.items():
        cells = f"{r['submit_ms']:.1f} ms | {r['decode_ms']:.1f} ms | {r['sandbox_ms']:.1f} ms | {r['added_ms']:.1f} ms"
        lines.append(f"| {name} | {cells} | {r['added_per_decode']:.2f} |")
    lines += ["", f"| jobs queued | polling {POLLED:,} jobs | one job |", "|---:|---:|---:|"]
    for queued, spent_ms in polls.items():
        lines.append(f"| {int(queued):,} | {spent_ms:,.0f} ms | {spent_ms / POLLED:.2f} ms |")
    few, many = polls.values()
    cores = len(os.sched_getaffinity(0))
    lines += ["", f"The longer queue takes {many / few:.2f} times as long. {cores} CPU cores, shared by all processes."]
    return "\n".join(lines)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
