"""The tools of `img2img mcp` as clients call them, against an API server without a worker. See tests/e2e for images."""

from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from img2img.app.compat.mcp.jobs import Service
from img2img.app.compat.mcp.server import build_server
from img2img.domain.parameters import Task
from img2img.redis.model_registry import ModelRegistry
from tests.support.images import encoded, gradient
from tests.support.mcp_tools import Call, caller, text_of
from tests.support.model_cards import CARD

IMAGE = b64encode(encoded(gradient(64, 64))).decode()


@pytest.fixture
def call(http: httpx.Client) -> Call:
    """Call a tool of a server for several users, where images are no files."""
    return caller(Service(str(http.base_url), None, with_files=False))


@pytest.fixture
def secret(tmp_path: Path) -> str:
    """An image on the machine of the server."""
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(gradient(64, 64)))
    return str(path)


class TestRemoteImages:
    @pytest.mark.parametrize(
        "options",
        [
            lambda path: {"mask": path},
            lambda path: {"images": [path]},
            lambda path: {"controls": [{"type": "canny", "image": path}]},
            lambda path: {"image_prompts": [{"image": path}]},
            lambda path: {"regions": [{"mask": path, "prompt": "x"}]},
        ],
        ids=["mask", "images", "controls", "image_prompts", "regions"],
    )
    def test_files_of_the_server_are_not_read(
        self, call: Call, secret: str, options: Callable[[str], dict[str, Any]], http: httpx.Client
    ) -> None:
        result = call("edit", image=IMAGE, prompt="x", strength=0.5, options=options(secret))
        assert result.is_error
        assert "URLs and file names are not read" in text_of(result)
        assert http.get("/jobs").json()["jobs"] == []

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            ("https://example.com/a.png", "URLs are not read"),
            ("/jobs/x/images/0", "is no reference"),
            ("/etc/passwd", "not read"),
            ("", "image: Field required"),
        ],
    )
    def test_what_is_no_image_is_named(self, call: Call, image: str, message: str) -> None:
        assert message in text_of(call("edit", image=image, prompt="x", strength=0.5))


class TestArguments:
    @pytest.mark.parametrize(
        ("tool", "arguments", "message"),
        [
            ("edit", {"prompt": "x", "seed": 3}, "seed: Unknown argument; known are image, prompt"),
            ("edit", {"prompt": "x", "strength": 0.5, "options": {"prompt": "y"}}, "options.prompt: This tool sets it"),
            ("edit", {"prompt": "x", "strength": 0.5, "options": {"mask": 3}}, "An image is text, not int"),
            ("edit", {"prompt": "x", "strength": 0.5, "options": {"controls": 3}}, "controls"),
            ("outpaint", {"prompt": "x"}, "Give at least one of `left`"),
            ("inpaint", {"prompt": "x"}, "Give either `mask` or `thing`"),
        ],
    )
    def test_what_has_no_effect_is_refused(
        self, call: Call, tool: str, arguments: dict[str, Any], message: str
    ) -> None:
        result = call(tool, image=IMAGE, **arguments)
        assert result.is_error
        assert message in text_of(result)

    def test_schema_refuses_unknown_arguments(self, http: httpx.Client) -> None:
        server = build_server(Service(str(http.base_url), None, with_files=False))
        tools = anyio.run(server.list_tools)
        assert [tool.input_schema["additionalProperties"] for tool in tools] == [False] * len(tools)

    @pytest.mark.usefixtures("fake_worker")
    @pytest.mark.parametrize(
        ("tool", "arguments"),
        [
            ("edit", {"prompt": "x", "strength": 0.5, "options": None}),
            ("edit", {"prompt": "x", "strength": 0.5, "image": f"DATA:image/png;base64,{IMAGE}"}),
            ("edit", {"prompt": "x", "strength": 0.5, "options": {"model": "", "seed": None, "negative_prompt": ""}}),
            ("inpaint", {"prompt": "x", "mask": IMAGE, "thing": "", "options": {"strength": 0.5}}),
        ],
    )
    def test_what_asks_for_nothing_is_accepted(
        self, call: Call, redis: Any, tool: str, arguments: dict[str, Any]
    ) -> None:
        ModelRegistry(redis).register("test-worker", [CARD.model_copy(update={"tasks": tuple(Task)})], ttl_s=60)
        result = call(tool, **{"image": IMAGE} | arguments)
        assert "succeeded" in text_of(result)
