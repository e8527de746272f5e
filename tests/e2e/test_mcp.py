"""`img2img mcp` with the client of the protocol's own library, against the whole service."""

import base64
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from mcp import Client, StdioServerParameters
from mcp_types import CallToolResult, ImageContent
from PIL import Image

from img2img.app.compat.mcp.hosts import accepted_names
from img2img.app.compat.mcp.jobs import Service
from img2img.app.compat.mcp.server import build_server
from img2img.app.supervisor.supervisor import free_port
from tests.support.images import encoded
from tests.support.mcp_tools import Call, caller, text_of

SIZE = 64
COMMAND = ["-m", "img2img.app.cli", "mcp"]
TOOLS = {"edit", "inpaint", "outpaint", "upscale", "variations", "controls", "get", "models"}
FAST = {"num_inference_steps": 4, "seed": 3}


@pytest.fixture
def photo(tmp_path: Path) -> str:
    pixels = np.random.default_rng(5).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    (tmp_path / "photo.png").write_bytes(encoded(Image.fromarray(pixels)))
    return str(tmp_path / "photo.png")


@pytest.fixture
def call(client: httpx.Client) -> Call:
    """Call a tool of a server in this process."""
    return caller(Service(str(client.base_url), None, with_files=True))


def images_of(result: CallToolResult) -> list[Image.Image]:
    found = [content for content in result.content if isinstance(content, ImageContent)]
    assert {content.mime_type for content in found} <= {"image/png"}
    return [Image.open(io.BytesIO(base64.b64decode(content.data))) for content in found]


class TestTools:
    def test_edit_gives_the_image_of_its_job(self, call: Call, client: httpx.Client, photo: str) -> None:
        result = call("edit", image=photo, prompt="a house", strength=0.5, options={**FAST, "scheduler": "ddim"})
        [job] = client.get("/jobs?limit=1").json()["jobs"]
        request = job["request"]
        assert (request["prompt"], request["strength"], request["scheduler"], request["seed"]) == (
            "a house",
            0.5,
            "ddim",
            3,
        )
        [image] = images_of(result)
        expected = Image.open(io.BytesIO(client.get(f"/jobs/{job['id']}/images/0").content))
        assert np.array_equal(np.asarray(image), np.asarray(expected))
        reference = f"/jobs/{job['id']}/images/0"
        assert reference in text_of(result)
        assert images_of(call("get", job=job["id"]))[0].size == (SIZE, SIZE)
        assert len(images_of(call("variations", image=reference, options={**FAST, "num_images": 2}))) == 2

    def test_inpaint_and_outpaint_keep_the_other_pixels(self, call: Call, photo: str, tmp_path: Path) -> None:
        mask = Image.new("L", (SIZE, SIZE))
        mask.paste(255, (10, 12, 40, 50))
        mask.save(tmp_path / "mask.png")
        original, hole = np.asarray(Image.open(photo)), np.asarray(mask) > 0
        [image] = images_of(call("inpaint", image=photo, mask=str(tmp_path / "mask.png"), prompt="x", options=FAST))
        assert (np.asarray(image)[~hole] == original[~hole]).all()
        assert (np.asarray(image)[hole] != original[hole]).mean() > 0.5
        [image] = images_of(call("outpaint", image=photo, prompt="x", right=32, options=FAST))
        assert (np.asarray(image)[:, :SIZE] == original).all()
        assert image.size == (SIZE + 32, SIZE)

    def test_upscale_and_models(self, call: Call, photo: str, client: httpx.Client) -> None:
        [image] = images_of(call("upscale", image=photo, options={"num_inference_steps": 4}))
        assert image.size == (2 * SIZE, 2 * SIZE)
        [model] = client.get("/models").json()["models"]
        listed = json.loads(text_of(call("models")))
        listed = listed if isinstance(listed, list) else [listed]
        assert [entry["name"] for entry in listed] == [model["name"]]
        assert "img2img" in listed[0]["tasks"]

    @pytest.mark.parametrize(
        ("tool", "arguments", "message"),
        [
            ("edit", {"prompt": "x", "options": {"width": 100}}, "width: "),
            ("edit", {"prompt": "x", "options": {"model": "none"}}, "There is no model none; there are: "),
            ("edit", {"prompt": "x", "options": {"colour": 1}}, "colour: Unknown field"),
            ("controls", {"prompt": "x", "type": "canny"}, "generation from controls alone"),
            ("upscale", {"factor": 3}, "upscale"),
        ],
    )
    def test_sentence_of_the_service_is_the_result(
        self, call: Call, photo: str, tool: str, arguments: dict[str, Any], message: str
    ) -> None:
        result = call(tool, image=photo, **arguments)
        assert result.is_error
        assert message in text_of(result)

    def test_missing_files_and_jobs_are_named(self, call: Call) -> None:
        assert "/nowhere.png" in text_of(call("edit", image="/nowhere.png", prompt="x"))
        assert call("get", job="0" * 32).is_error

    def test_progress_follows_the_events(self, client: httpx.Client, photo: str) -> None:
        server = build_server(Service(str(client.base_url), None, with_files=True))
        seen: list[tuple[float, float | None]] = []

        async def notice(progress: float, total: float | None, _message: str | None) -> None:
            seen.append((progress, total))

        async def work() -> None:
            async with Client(server) as session:
                options = {"num_inference_steps": 100}
                arguments = {"image": photo, "prompt": "x", "strength": 1.0, "options": options}
                await session.call_tool("edit", arguments, progress_callback=notice)

        anyio.run(work)
        steps = [progress for progress, total in seen if total == 100]
        assert len(steps) > 1
        assert steps == sorted(steps)

    def test_cancelled_call_cancels_its_job(self, client: httpx.Client, photo: str) -> None:
        server = build_server(Service(str(client.base_url), None, with_files=True))

        async def work() -> None:
            async with Client(server) as session:
                with anyio.move_on_after(60) as scope:

                    async def stop(progress: float, _total: float | None, _message: str | None) -> None:
                        if progress:
                            scope.cancel()

                    options = {"num_inference_steps": 150, "num_images": 8}
                    arguments = {"image": photo, "prompt": "x", "strength": 1.0, "options": options}
                    await session.call_tool("edit", arguments, progress_callback=stop)
                await anyio.sleep(1)

        anyio.run(work)
        deadline = time.monotonic() + 90
        while client.get("/jobs?limit=1").json()["jobs"][0]["status"] != "cancelled":
            assert time.monotonic() < deadline
            time.sleep(0.1)


async def assert_serves(session: Client, photo: str, image: str) -> None:
    """The tools are listed, and one works."""
    assert {tool.name for tool in (await session.list_tools()).tools} == TOOLS
    result = await session.call_tool("edit", {"image": image, "prompt": "x", "strength": 0.5, "options": FAST})
    assert images_of(result)[0].size == (SIZE, SIZE), text_of(result)


def test_stdio(client: httpx.Client, photo: str) -> None:
    parameters = StdioServerParameters(command=sys.executable, args=[*COMMAND, "--url", str(client.base_url)])

    async def work() -> None:
        async with Client(parameters) as session:
            await assert_serves(session, photo, photo)

    anyio.run(work)


@pytest.fixture
def over_http(client: httpx.Client) -> Iterator[str]:
    """The URL of a server for several users."""
    port = free_port()
    listen = ["--http", "--host", "0.0.0.0", "--port", str(port), "--allowed-host", "tools.example"]
    command = [sys.executable, *COMMAND, *listen, "--url", str(client.base_url)]
    process = subprocess.Popen(command)
    try:
        url = f"http://127.0.0.1:{port}/mcp"
        deadline = time.monotonic() + 120
        while True:
            assert time.monotonic() < deadline
            assert process.poll() is None
            try:
                httpx.get(url)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def test_streamable_http(over_http: str, photo: str) -> None:
    in_base64 = base64.b64encode(Path(photo).read_bytes()).decode()

    async def work() -> None:
        async with Client(over_http) as session:
            await assert_serves(session, photo, in_base64)
            refused = await session.call_tool("edit", {"image": photo, "prompt": "x"})
            assert refused.is_error, "a path of this machine"

    anyio.run(work)


def test_other_names_and_origins_are_refused(over_http: str) -> None:
    """Web pages that rebind their names, also if the server listens for other machines."""
    accept = {"Accept": "application/json, text/event-stream"}
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    for refusal, headers in (
        (421, {"Host": "rebound.example"}),
        (403, {"Origin": "https://rebound.example"}),
        (None, {"Host": "tools.example"}),
        (None, {"Origin": "https://tools.example"}),
        (None, {}),
    ):
        status = httpx.post(over_http, json=ping, headers=accept | headers).status_code
        assert (status if status in (403, 421) else None) == refusal, headers
    assert not accepted_names("0.0.0.0", ["*"]).enable_dns_rebinding_protection
    assert "[fd00::1]:*" in accepted_names("fd00::1", []).allowed_hosts


def test_http_has_no_key_of_its_own() -> None:
    command = [sys.executable, *COMMAND, "--http"]
    run = subprocess.run(
        command, env={**os.environ, "IMG2IMG_API_KEY": "x"}, capture_output=True, text=True, check=False
    )
    assert (run.returncode, "each client sends its own key" in run.stderr) == (2, True)
