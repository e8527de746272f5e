"""Clients generated from openapi.json, and JavaScript clients of compatible APIs: each saves the PNG of its job.

`make test-clients` installs the generators; without them these tests are skipped.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from tests.support.pages import blocks

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TOOLS = ROOT / ".clients"
BIN = TOOLS / "bin"
NODE_BIN = TOOLS / "node_modules" / ".bin"
DOCUMENT = ROOT / "openapi.json"
MAX_WARNINGS = 5
GENERATOR = (BIN / "openapi-generator-cli", "generate", "--input-spec", DOCUMENT)

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(not BIN.exists(), reason="no client generators: `make test-clients` installs them"),
    pytest.mark.usefixtures("fake_worker"),
]
needs_java = pytest.mark.skipif(not shutil.which("java"), reason="openapi-generator needs Java 11 or newer")
needs_node = pytest.mark.skipif(
    not (shutil.which("node") and NODE_BIN.exists()), reason="needs Node 20.19 or newer, then `make test-clients`"
)


def run(*command: object, folder: Path, **variables: str) -> str:
    """Run the command, assert that it succeeds, and return its output."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"} | variables,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_works(command: Sequence[object], folder: Path, http: httpx.Client, **variables: str) -> None:
    """Run a script that uses a client, and assert that it saves the image of its job."""
    output = folder / "result.png"
    job_id = run(*command, http.base_url, ROOT / "examples" / "input.png", output, folder=folder, **variables).strip()
    job = http.get(f"/jobs/{job_id}").raise_for_status().json()
    assert job["request"]["prompt"] == "a pencil sketch"
    assert job["request"]["strength"] == 0.6
    assert sha256(output.read_bytes()).hexdigest() == job["images"][0]["sha256"]


def assert_works_in_typescript(script: str, folder: Path, http: httpx.Client) -> None:
    """Compile the client, the script, the example and the TypeScript block of the documentation, and run the script."""
    shutil.copy(HERE / script, folder)
    shutil.copy(ROOT / "examples" / "typescript" / "image_to_image.ts", folder)
    [documented] = blocks("typescript")
    (folder / "documented.ts").write_text(documented)
    run(NODE_BIN / "tsc", folder=folder)
    assert_works(["node", folder / "js" / Path(script).with_suffix(".js")], folder, http)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A TypeScript project."""
    shutil.copy(HERE / "tsconfig.json", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "node_modules").symlink_to(TOOLS / "node_modules")
    return tmp_path


def test_openapi_python_client_saves_the_image(tmp_path: Path, http: httpx.Client) -> None:
    config = HERE / "openapi-python-client.yaml"
    options = ("--meta", "none", "--output-path", "img2img_client", "--config", config, "--fail-on-warning")
    run(BIN / "openapi-python-client", "generate", "--path", DOCUMENT, *options, folder=tmp_path)
    assert_works([BIN / "python", HERE / "openapi_python_client.py"], tmp_path, http, PYTHONPATH=str(tmp_path))
    no_image = HERE / "requirements.txt"
    command = [BIN / "python", HERE / "openapi_python_client.py", str(http.base_url), no_image, "none.png"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    refused = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert refused.stderr == "unsupported_media_type: The image is not a PNG, JPEG or WebP file.\n"


@needs_java
def test_openapi_generator_python_saves_the_image(tmp_path: Path, http: httpx.Client) -> None:
    options = ("--generator-name", "python", "--additional-properties", "packageName=img2img_client")
    run(*GENERATOR, *options, "--output", ".", folder=tmp_path)
    assert_works([BIN / "python", HERE / "openapi_generator.py"], tmp_path, http, PYTHONPATH=str(tmp_path))


@needs_java
@needs_node
def test_openapi_generator_typescript_fetch_saves_the_image(project: Path, http: httpx.Client) -> None:
    options = ("--generator-name", "typescript-fetch", "--additional-properties", "importFileExtension=.js")
    # Without these it omits a model that it imports, and fails on `webhooks`.
    options += ("--global-property", "apis,models,supportingFiles,skipFormModel=false")
    run(*GENERATOR, *options, "--output", "img2img-client", folder=project)
    assert_works_in_typescript("openapi_generator.ts", project, http)


@needs_node
def test_hey_api_saves_the_image(project: Path, http: httpx.Client) -> None:
    shutil.copy(DOCUMENT, project)
    shutil.copy(HERE / "openapi-ts.config.mjs", project)
    run(NODE_BIN / "openapi-ts", "--file", "openapi-ts.config.mjs", "--no-log-file", folder=project)
    assert_works_in_typescript("hey_api.ts", project, http)


@needs_node
def test_validators_find_no_errors_and_few_warnings(tmp_path: Path) -> None:
    (tmp_path / "ruleset.yaml").write_text('extends: ["spectral:oas"]\n')
    spectral = (NODE_BIN / "spectral", "lint", DOCUMENT, "--ruleset", "ruleset.yaml", "--format", "json", "--quiet")
    findings = json.loads(run(*spectral, folder=tmp_path) or "[]")
    assert (sum(one["severity"] == 0 for one in findings), len(findings) <= MAX_WARNINGS) == (0, True), findings
    report = json.loads(run(NODE_BIN / "redocly", "lint", DOCUMENT, "--format", "json", folder=tmp_path))
    assert report["totals"]["errors"] == 0
    assert report["totals"]["warnings"] <= MAX_WARNINGS, report["problems"]


@needs_node
@pytest.mark.parametrize("script", ["openai.mjs", "replicate.mjs", "hugging_face.mjs"])
def test_client_of_a_compatible_api_saves_the_image(tmp_path: Path, http: httpx.Client, script: str) -> None:
    shutil.copy(HERE / script, tmp_path)
    (tmp_path / "node_modules").symlink_to(TOOLS / "node_modules")
    assert_works(["node", tmp_path / script], tmp_path, http)
