"""What the front end costs: real HTTP, a real Redis, no worker.

    python -m benchmarks.submit

1. A submit, against decoding and re-encoding its picture, which any front end must do: in this process, and in a
   decoder, as the front end does it. Measured in turns.
2. Polling 1,000 jobs with 10 and with 100,000 jobs queued: two services side by side, polled in turns.
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

from benchmarks.front_end import CARD, FrontEnd, front_end
from img2img.app.imaging.decode import EncodedImage, encode_png
from img2img.app.imaging.sandbox_limits import SandboxLimits
from img2img.app.imaging.sandbox_pool import DecoderPool, SandboxedImage
from img2img.app.submission.geometry import nearest_bucket
from img2img.domain.parameters import Resize

PICTURES = {"PNG 512x512": ("PNG", 512, 512), "JPEG 1600x1200": ("JPEG", 1600, 1200)}
POLLED = 1_000
MAX_PIXELS = 50_000_000
WARM_UP = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--submits", type=int, default=60, help="per kind of picture")
    parser.add_argument(
        "--queued", type=int, nargs=2, default=[10, 100_000], help="jobs queued while others are polled"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of polling, the fastest counts")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    with front_end() as service:
        submits = {name: _submits(service, options.submits, *picture) for name, picture in PICTURES.items()}
    polls = _polls(*options.queued, options.rounds)
    print(_markdown(submits, polls))
    if options.json:
        options.json.write_text(json.dumps({"submits": submits, "polls": polls}, indent=2) + "\n")


def _submits(service: FrontEnd, count: int, kind: str, width: int, height: int) -> dict[str, float]:
    """Medians in milliseconds. No picture is sent twice, as the store would know it."""
    pictures = [_photo(seed, kind, width, height) for seed in range(WARM_UP + count)]
    service.disconnect()  # making them took a while, and the server lets idle connections go
    submit_ms, picture_ms, apart_ms = [], [], []
    decoders = DecoderPool(SandboxLimits(MAX_PIXELS, max_bytes=len(max(pictures, key=len))))
    for data in pictures:
        body = httpx.Request("POST", service.url, files={"image": data}, data={"prompt": "a house", "strength": "0.6"})
        body.read()
        submit_ms.append(_ms(lambda body=body: service.post("/img2img", body.content, body.headers["content-type"])))
        picture_ms.append(_ms(lambda data=data: _fit_and_encode(EncodedImage(data, MAX_PIXELS))))
        apart_ms.append(_ms(lambda data=data: _fit_and_encode_in_sandbox(decoders, data)))
    decoders.close()
    whole, own, apart = (median(times[WARM_UP:]) for times in (submit_ms, picture_ms, apart_ms))
    return {
        "submit_ms": whole,
        "picture_ms": own,
        "apart_ms": apart,
        "added_ms": whole - own,
        "added_per_picture": (whole - own) / own,
        "apart_per_picture": apart / own,
    }


def _fit_and_encode_in_sandbox(decoders: DecoderPool, data: bytes) -> None:
    with decoders.open(data) as image:
        _fit_and_encode(image)


def _fit_and_encode(upload: EncodedImage | SandboxedImage) -> None:
    encode_png(upload.fit(*nearest_bucket(CARD.sizes, *upload.size), Resize.CROP))


def _polls(few: int, many: int, rounds: int) -> dict[str, float]:
    """Fastest round, in milliseconds for a poll of each job."""
    with front_end() as calm, front_end() as busy:
        services = {few: calm, many: busy}
        jobs = {queued: service.fill(POLLED, queued) for queued, service in services.items()}
        _say(f"polling {POLLED} jobs with {few} and with {many} jobs queued")
        spent: dict[int, list[float]] = {few: [], many: []}
        for _ in range(rounds):
            for queued, service in services.items():
                service.disconnect()  # it was idle, and may have let the connection go
                spent[queued].append(_ms(lambda s=service, ids=jobs[queued]: [s.get(f"/jobs/{i}") for i in ids]))
    return {str(queued): min(times) for queued, times in spent.items()}


def _photo(seed: int, kind: str, width: int, height: int) -> bytes:
    """Blots of colour with grain, about as hard to compress as a photograph."""
    rng = np.random.default_rng(seed)
    blots = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, 3, (height, width, 1))
    buffer = BytesIO()
    Image.fromarray((np.asarray(blots) + grain).clip(0, 255).astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def _ms(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1000


def _markdown(submits: dict[str, dict[str, float]], polls: dict[str, float]) -> str:
    lines = ["| picture | submit | decoding and re-encoding it | in a decoder | added by all | ratio |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for name, r in submits.items():
        cells = f"{r['submit_ms']:.1f} ms | {r['picture_ms']:.1f} ms | {r['apart_ms']:.1f} ms | {r['added_ms']:.1f} ms"
        lines.append(f"| {name} | {cells} | {r['added_per_picture']:.2f} |")
    lines += ["", f"| jobs queued | polling {POLLED:,} jobs | of one |", "|---:|---:|---:|"]
    for queued, spent_ms in polls.items():
        lines.append(f"| {int(queued):,} | {spent_ms:,.0f} ms | {spent_ms / POLLED:.2f} ms |")
    few, many = polls.values()
    cores = len(os.sched_getaffinity(0))
    lines += ["", f"The longer queue costs {many / few:.2f} times as much. {cores} CPU cores, all processes on them."]
    return "\n".join(lines)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
