"""Fuzzed uploads over real HTTP: no 500, no hang, no memory growth.

`make fuzz` sends 10,000; FUZZ_INPUTS and FUZZ_SEED set number and seed. The API server is a separate process, so
that its memory can be measured.
"""

import base64
import collections
import os
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from benchmarks.api_server import run_api_server
from tests.support.fuzzing import Fuzzer
from tests.support.images import encoded, gradient

INPUTS = int(os.environ.get("FUZZ_INPUTS", "150"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
WARM_UP = max(50, INPUTS // 5)  # inputs until allocators and caches are warm
MAX_GROWTH_BYTES = 48 * 1024 * 1024
MAX_S = 60.0  # for one response, on a busy machine
GOOD = encoded(gradient(96, 64))
SMALL = {"width": "256", "height": "256"}
ALLOWED_STATUSES = {200, 201, 202, 400, 415, 422}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with run_api_server() as service:
        yield service.url


def memory_bytes() -> int:
    """Memory of the API server and its decoders (and of idle ones of other tests)."""
    children = psutil.Process().children(recursive=True)
    apis = [child for child in children if "api" in child.cmdline()]
    return int(sum(process.memory_info().rss for api in apis for process in [api, *api.children()]))


def request(url: str, number: int, data: bytes) -> httpx.Request:
    """Return a request with the input: as a form or JSON; every fifth time the whole form is fuzzed."""
    match number % 5:
        case 0:
            return httpx.Request("POST", f"{url}/images", files={"image": data})
        case 1:
            return httpx.Request("POST", f"{url}/img2img?dry_run=true", files={"image": data}, data=SMALL)
        case 2:
            files = {"image": GOOD, "mask": data}
            return httpx.Request("POST", f"{url}/img2img?dry_run=true", files=files, data=SMALL)
        case 3:
            body = {"image": base64.b64encode(data).decode(), "width": 256, "height": 256}
            return httpx.Request("POST", f"{url}/img2img?dry_run=true", json=body)
    whole = httpx.Request("POST", f"{url}/images", files={"image": data})
    body, at = bytearray(whole.read()), (number * 7919) % 200
    body[at : at + number % 3] = data[:3]
    headers = {"Content-Type": whole.headers["content-type"]}
    return httpx.Request("POST", f"{url}/images", content=bytes(body), headers=headers)


@pytest.mark.timeout(60 + INPUTS)
def test_service_survives_fuzzed_input(url: str) -> None:
    fuzzer, statuses, slowest_s, when_warm = Fuzzer(SEED), collections.Counter[int](), 0.0, 0
    with httpx.Client(timeout=MAX_S) as client:
        for number in range(INPUTS + WARM_UP):
            if number == WARM_UP:
                when_warm = memory_bytes()
            data, started_at = fuzzer.next(), time.monotonic()
            response = client.send(request(url, number, data))
            slowest_s = max(slowest_s, time.monotonic() - started_at)
            statuses[response.status_code] += 1
            assert response.status_code in ALLOWED_STATUSES, (
                f"input {number} of seed {SEED}: {response.status_code} {response.text}"
            )
        growth = memory_bytes() - when_warm
        assert client.post(f"{url}/images", files={"image": GOOD}).status_code == 201
    print(  # noqa: T201  # what `make fuzz` is for
        f"\n{statuses.total()} inputs of seed {SEED}: {dict(statuses)}, slowest {slowest_s:.2f} s, memory from "
        f"{when_warm / 1e6:.0f} MB by {growth / 1e6:+.1f} MB"
    )
    assert growth < MAX_GROWTH_BYTES
    assert statuses[200] + statuses[201] > INPUTS / 50, "some inputs are valid images"
    assert statuses[422] > INPUTS / 10
