"""Modules that an import loads in a fresh interpreter."""

import subprocess
import sys

import pytest

GPU_SIDE = {"torch", "diffusers", "transformers", "img2img.worker", "numpy"}
SLOW = {"redis", "rq", "httpx", "PIL", "obstore", "uvicorn", "fastapi", "starlette", "pydantic_settings"}
# An extra, off by default. redis loads the rest of OpenTelemetry if it is installed.
TRACES = {"opentelemetry.sdk.trace", "opentelemetry.exporter", "opentelemetry.instrumentation"}
HTTP_SIDE = {"fastapi", "starlette", "uvicorn", "typer"}


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("img2img.app.main", GPU_SIDE),
        # `--help` should take less than a second.
        ("img2img.app.cli", GPU_SIDE | SLOW),
        ("img2img.app.webhooks.__main__", GPU_SIDE | HTTP_SIDE | {"PIL"}),
        ("img2img.domain", GPU_SIDE | HTTP_SIDE | {"PIL"}),
        ("img2img.worker.__main__", HTTP_SIDE),
        ("img2img.worker.engine.engine", HTTP_SIDE | {"redis", "rq", "pydantic", "img2img.app"}),
    ],
)
def test_import_loads_no_forbidden_module(module: str, forbidden: set[str]) -> None:
    program = f"import {module}, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert not forbidden & {part for name in loaded.split() for part in (name, name.partition(".")[0])}
    assert not TRACES & set(loaded.split())
