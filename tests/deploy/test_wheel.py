"""The installed distribution: the files of the wheel, the base install, and coexistence with other projects."""

import os
import re
import signal
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from img2img.app.supervisor.supervisor import free_port
from tests.support.cli_command import FAKES
from tests.support.processes import wait_for

ROOT = Path(__file__).parents[2]
DISTRIBUTION = "img2img-server"
SOURCES = ("app", "worker", "demo_model", "img2img", "setup.py", "pyproject.toml", "README.md", "LICENSE")
# A `sitecustomize` module that hides all packages that are not part of the base install.
HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""
BUILD = "import setuptools.build_meta as backend; backend.build_{kind}({target!r})"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources: the build writes no files into the clone and uses none of earlier builds."""
    copy = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *SOURCES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, tracked.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).symlink_to(ROOT / name)
    return copy


def build(kind: str, source: Path, target: Path) -> Path:
    """Run the build backend as pip does, without network access."""
    code = BUILD.format(kind=kind, target=str(target))
    subprocess.run([sys.executable, "-P", "-c", code], cwd=source, capture_output=True, check=True)
    [file] = target.iterdir()
    return file


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that TEST_WHEEL names, or a new one."""
    named = Path(os.environ.get("TEST_WHEEL", ""))
    return zipfile.ZipFile(
        named if named.suffix == ".whl" else build("wheel", source, tmp_path_factory.mktemp("wheel"))
    )


@pytest.fixture(scope="module")
def site(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site-packages folder with the wheel."""
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Another project with packages that have the names of the folders of this repository."""
    for name in ("app", "worker", "demo_model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the wrong package')")
    return tmp_path


def base_distributions(names: list[Requirement]) -> set[str]:
    """Return the distributions that the requirements need, directly and indirectly."""
    found: set[str] = set()
    while names:
        requirement = names.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        names += map(Requirement, requires(name) or ())
    return found


def run(project: Path, *command: str, path: tuple[Path, ...]) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("IMG2IMG_")}
    environment = inherited | {"PYTHONPATH": os.pathsep.join(map(str, path)), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *command], cwd=project, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def base_only(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH that hides the packages that `pip install img2img-server` does not install."""
    [metadata] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    lines = re.findall(r"^Requires-Dist: (.*)$", wheel.read(metadata).decode(), re.MULTILINE)
    base = base_distributions([Requirement(line) for line in lines if "extra ==" not in line])
    hidden = {
        package
        for package, names in packages_distributions().items()
        if package != "img2img" and not base & {canonicalize_name(name) for name in names}
    }
    assert {"torch", "redis", "fastapi", "pydantic_settings", "PIL"} <= hidden
    folder = tmp_path_factory.mktemp("hide")
    (folder / "sitecustomize.py").write_text(HIDE.format(hidden=hidden))
    return folder


def test_wheel_holds_one_package(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert {name.partition("/")[0] for name in names} == {
        "img2img",
        f"{DISTRIBUTION.replace('-', '_')}-0.1.0.dist-info",
    }
    # A module and a package with the same name would hide each other.
    modules = {name.removesuffix(".py").removesuffix("/__init__") for name in names if name.endswith(".py")}
    assert len(modules) == len([name for name in names if name.endswith(".py")])


def test_wheel_holds_every_module_and_data_file(wheel: zipfile.ZipFile, source: Path) -> None:
    packaged = set(wheel.namelist())
    for folder in ("app", "worker", "demo_model", "img2img"):
        prefix = "" if folder == "img2img" else "img2img/"
        for path in (source / folder).rglob("*"):
            data = (
                path.suffix
                in (".py", ".lua", ".typed", ".toml", ".safetensors", ".json", ".gz", ".js", ".css", ".html")
                or path.name == "example.png"
            )
            if path.is_file() and data:
                assert f"{prefix}{path.relative_to(source)}" in packaged


def test_wheel_built_from_the_source_distribution_has_the_same_files(
    wheel: zipfile.ZipFile, source: Path, tmp_path: Path
) -> None:
    sdist, unpacked = tmp_path / "sdist", tmp_path / "unpacked"
    sdist.mkdir()
    (tmp_path / "wheel").mkdir()
    with tarfile.open(build("sdist", source, sdist)) as archive:
        archive.extractall(unpacked)
    [folder] = unpacked.iterdir()
    rebuilt = zipfile.ZipFile(build("wheel", folder, tmp_path / "wheel"))
    assert sorted(rebuilt.namelist()) == sorted(wheel.namelist())


def test_base_install_has_the_client_and_the_command(site: Path, base_only: Path, project: Path) -> None:
    path = (base_only, site)
    help_result = run(project, "-m", "img2img.app.cli", "--help", path=path)
    assert (help_result.returncode, help_result.stderr) == (0, "")
    assert "submit" in help_result.stdout
    code = "import img2img, sys; from img2img import Client, AsyncClient; print(img2img.__version__, img2img.__file__)"
    imported = run(project, "-c", code, path=path)
    assert imported.stdout.split() == ["0.1.0", str(site / "img2img" / "__init__.py")], imported.stderr
    unreachable = run(
        project, "-m", "img2img.app.cli", "submit", "app/__init__.py", "--url", "http://[::1]:1", path=path
    )
    assert unreachable.returncode == 3, unreachable.stderr


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("serve", "serve"),
        ("demo", "serve"),
        ("doctor", "serve"),
        ("api", "api"),
        ("webhooks", "api"),
        ("keys list", "api"),
        ("worker", "api,worker"),
    ],
)
def test_server_command_names_its_extra(site: Path, base_only: Path, project: Path, command: str, extra: str) -> None:
    result = run(project, "-m", "img2img.app.cli", *command.split(), path=(base_only, site))
    assert (result.returncode, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("img2img: the server is not installed (No module named ")
    assert line.endswith(f"): pip install '{DISTRIBUTION}[{extra}]'")


def test_watch_option_names_its_extra(site: Path, base_only: Path, project: Path) -> None:
    result = run(project, "-m", "img2img.app.cli", "submit", "x.png", "--watch", path=(base_only, site))
    assert result.returncode == 2
    assert result.stderr == f"img2img: --watch needs more packages: pip install '{DISTRIBUTION}[watch]'\n"


def test_demo_runs_outside_a_clone(site: Path, project: Path) -> None:
    result = run(project, "-m", "img2img.app.cli", "demo", path=(FAKES, site))
    assert result.returncode == 0, result.stderr
    assert Image.open(project / "demo-output.png").format == "PNG"


def test_packaged_example_is_the_example_of_the_documents() -> None:
    packaged = ROOT / "demo_model" / "example.png"
    assert packaged.read_bytes() == (ROOT / "examples" / "input.png").read_bytes()


@pytest.mark.timeout(1800)
@pytest.mark.skipif("TEST_WHEEL" not in os.environ, reason="downloads the packages of the whole service")
def test_wheel_in_an_empty_environment_runs_the_service(
    wheel: zipfile.ZipFile, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    environment = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(environment, with_pip=True)
    command, pip = environment / "bin" / "img2img", [environment / "bin" / "python", "-m", "pip", "install", "--quiet"]
    constraints = ["--constraint", ROOT / "constraints.txt"]
    subprocess.run([*pip, *constraints, f"{wheel.filename}[serve,redis]"], check=True)
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("IMG2IMG_", "PYTHON"))}

    def img2img(*arguments: str) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run([command, *arguments], cwd=project, env=settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    assert "FAULT" not in img2img("doctor").stdout
    img2img("demo")
    assert Image.open(project / "demo-output.png").format == "PNG"
    port = str(free_port())
    settings["IMG2IMG_PORT"] = port
    with subprocess.Popen([command, "serve"], cwd=project, env=settings) as serve:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(lambda: is_ready(url) or serve.poll() is not None, timeout_s=180)
            img2img("submit", "demo-output.png", "--prompt", "winter", "-o", "winter.png", "--url", url)
            assert f"{url}, the service is ready" in img2img("doctor").stdout
        finally:
            serve.send_signal(signal.SIGINT)
        assert serve.wait(60) == 0
    assert Image.open(project / "winter.png").format == "PNG"


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_no_message_names_the_distribution_of_another_project() -> None:
    # The package index has another project called img2img.
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    texts = [ROOT / name for name in tracked.splitlines() if name.endswith((".py", ".md", ".toml", ".txt", "file"))]
    wrong = re.compile(r"pip install\b[^\n`#]*?['\" ]img2img(?![-\w./])")
    assert {path.name: wrong.findall(path.read_text()) for path in texts if wrong.search(path.read_text())} == {}
