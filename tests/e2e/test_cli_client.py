"""Commands of the client, as processes against an API server."""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from operator import itemgetter
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from img2img.app.supervisor.supervisor import free_port
from img2img.blobs import ObjectStore
from img2img.domain.blob_keys import result_key
from img2img.domain.infotext import infotext
from img2img.redis.job_queue import JobQueue
from img2img.worker.images.png import encode_png
from tests.support.cli_command import img2img, one_line
from tests.support.damage import DAMAGES, damage
from tests.support.images import encoded, gradient
from tests.support.specs import make_spec

SIZE = ("--width", 64, "--height", 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with three images, two of them with the same name."""
    for index, name in enumerate(("a.png", "b.png", "more/a.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(gradient(80, 60 + index)))
    return tmp_path


@pytest.fixture
def url(http: httpx.Client) -> str:
    return str(http.base_url)


@pytest.mark.usefixtures("fake_worker")
def test_submit_accepts_names_and_patterns(folder: Path, url: str) -> None:
    done = img2img(folder, "submit", "*.png", "more/a.png", "--output-dir", "out", *SIZE, "--url", url)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split()) == ["out/a-2.png", "out/a.png", "out/b.png"]
    assert all(Image.open(folder / name).size == (64, 64) for name in done.stdout.split())
    inputs = {path: path.read_bytes() for path in folder.glob("*.png")}
    done = img2img(folder, "submit", "a.png", "b.png", "--output-dir", ".", *SIZE, "--url", url)
    assert sorted(done.stdout.split()) == ["a-2.png", "b-2.png"]
    assert all(path.read_bytes() == before for path, before in inputs.items())


@pytest.mark.usefixtures("fake_worker")
def test_submit_reports_overwritten_files(folder: Path, url: str) -> None:
    (folder / "out.png").write_bytes(b"old")
    done = img2img(folder, "submit", "a.png", *SIZE, "--url", url)
    assert (done.stdout, done.stderr) == ("out.png\n", "img2img: overwriting out.png\n")
    done = img2img(folder, "submit", "a.png", "-o", "{stem}-{seed}.png", "--seed", 7, "--num-images", 2, "--url", url)
    assert (done.stdout, done.stderr) == ("a-7.png\na-8.png\n", "")


@pytest.mark.usefixtures("fake_worker")
def test_json_option_prints_only_json(folder: Path, url: str) -> None:
    shutil.copy(folder / "a.png", folder / "c.png")
    (folder / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    done = img2img(folder, "submit", "a.png", "b.png", "--json", *SIZE, "--url", url)
    assert done.returncode == 1
    assert done.stderr.startswith("img2img: b.png: image: The PNG image is broken")
    # In the order in which they end.
    job, refused = sorted(map(json.loads, done.stdout.splitlines()), key=itemgetter("input"))
    assert (refused["input"], refused["problem"]["status"]) == ("b.png", 422)
    assert (job["input"], job["status"], job["files"]) == ("a.png", "succeeded", ["a-out.png"])
    assert sha256((folder / "a-out.png").read_bytes()).hexdigest() == job["images"][0]["sha256"]
    dry_run = json.loads(img2img(folder, "submit", "a.png", "--dry-run", *SIZE, "--url", url).stdout)
    assert (dry_run["input"], dry_run["request"]["width"]) == ("a.png", 64)


def test_submit_accepts_stdin_and_references(
    folder: Path, url: str, queue: JobQueue, finish: Callable[[str], bytes], http: httpx.Client
) -> None:
    image = (folder / "a.png").read_bytes()
    options = ("--no-wait", "--seed", 1, "--url", url)
    first = img2img(folder, "submit", "-", *options, stdin=image).stdout.strip()
    finish(first)
    reference = f"/jobs/{first}/images/0"
    second = img2img(folder, "submit", reference, *options, "--prompt", "again").stdout.strip()
    assert http.get(f"/jobs/{second}").json()["request"]["prompt"] == "again"
    assert queue.job_store.find(second).spec.image != queue.job_store.find(first).spec.image
    assert one_line(img2img(folder, "submit", "-", "-", "--url", url), code=2)


def test_idempotency_key_covers_several_images(folder: Path, url: str) -> None:
    options = ("--no-wait", "--idempotency-key", "order-17", "--url", url)
    first = img2img(folder, "submit", "a.png", "b.png", *options).stdout.split()
    second = img2img(folder, "submit", "b.png", "a.png", *options).stdout.split()
    assert len(set(first)) == 2
    assert second == first[::-1]


def test_cancel_result_jobs_show_and_delete(
    folder: Path, url: str, http: httpx.Client, finish: Callable[[str], bytes]
) -> None:
    settings = {"IMG2IMG_URL": url}
    done, stopped = img2img(folder, "submit", "?.png", "--no-wait", *SIZE, **settings).stdout.split()
    assert img2img(folder, "cancel", stopped, **settings).stdout == f"{stopped} cancelled\n"
    png = finish(done)
    result = img2img(folder, "result", done, stopped, "--output-dir", "out", **settings)
    assert (result.returncode, result.stdout) == (1, f"out/{done}.png\n")
    assert result.stderr == f"img2img: {stopped}: the job was cancelled\n"
    assert (folder / "out" / f"{done}.png").read_bytes() == png
    table = img2img(folder, "jobs", "--limit", 1, **settings).stdout.splitlines()
    assert len(table) == 2
    assert table[1].split()[:2] == [stopped, "cancelled"]
    listed = img2img(folder, "jobs", "--status", "succeeded", "--json", **settings).stdout.splitlines()
    assert [json.loads(line)["id"] for line in listed] == [done]
    assert "\n  width: 64\n" in img2img(folder, "show", done, **settings).stdout
    assert json.loads(img2img(folder, "show", done, "--json", **settings).stdout) == http.get(f"/jobs/{done}").json()
    deleted = img2img(folder, "delete", done, "no-such-job", **settings)
    assert (deleted.returncode, deleted.stdout) == (1, f"{done} deleted\n")
    assert deleted.stderr.startswith("img2img: no-such-job: ")
    assert http.get(f"/jobs/{done}").status_code == 410


def test_show_prints_the_parameters_in_a_file(folder: Path) -> None:
    spec, pixels = make_spec(num_inference_steps=12), np.zeros((4, 4, 3), np.uint8)
    metadata = spec.without_inputs().model_dump(mode="json", exclude_none=True)
    (folder / "own.png").write_bytes(encode_png(pixels, metadata, infotext(spec, 7)))
    (folder / "a1111.png").write_bytes(encode_png(pixels, None, infotext(spec, 7)))
    # A file needs no service.
    own = img2img(folder, "show", "own.png", "--url", "http://127.0.0.1:1")
    assert (own.returncode, own.stderr) == (0, "")
    assert "num_inference_steps: 12\n" in own.stdout
    assert json.loads(img2img(folder, "show", "own.png", "--json").stdout) == metadata
    assert "Steps: 12\n" in img2img(folder, "show", "a1111.png").stdout
    assert one_line(img2img(folder, "show", "a.png"), 2) == "img2img: a.png holds no parameters"


def test_models_lists_the_models(folder: Path, url: str) -> None:
    table = img2img(folder, "models", "--url", url).stdout.splitlines()
    assert [line.split()[0] for line in table] == ["model", "ddim-only", "demo"]
    models = img2img(folder, "models", "--json", "--url", url).stdout.splitlines()
    assert [json.loads(line)["name"] for line in models] == ["ddim-only", "demo"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("nothing.png", "there is no file nothing.png"),
        ("no/*.png", "there is no file no/*.png"),
        (
            "a.png b.png -o one.png",
            "one --output for several images: use --output-dir, or a pattern with {stem} or {id}",
        ),
        ("a.png -o {name}.png", "--output may contain {stem}, {index}, {seed}, {id}"),
        ("a.png -o x.png --output-dir y", "--output and --output-dir exclude each other; a pattern may name a folder"),
        ("a.png --output more", "more is a folder: use --output-dir more"),
        ("a.png --output none/a.png", "there is no folder none"),
        ("a.png b.png --output-dir a.png", "cannot create the folder a.png: File exists"),
        ("a.png --output-dir a.png/x", "cannot create the folder a.png/x: Not a directory"),
        ("a.png --output a.tiff", "--output a.tiff: the suffix should be one of .png, .jpg, .jpeg, .webp"),
        ("a.png --output a.jpg --format png", "--format png contradicts --output a.jpg"),
        ("a.png --output a.jpg --quality 0", "--quality should be 1 to 100, got 0"),
        (
            "a.png --background transparent -o a.jpg",
            "a JPEG cannot be transparent; choose PNG or WebP with --format or the suffix of --output",
        ),
        ("a.png --quality 9", "--quality is for JPEG and WebP; choose one with --format or the suffix of --output"),
        ("a.png --mask none.png", "[Errno 2] No such file or directory: 'none.png'"),
        ("a.png --skip-existing --overwrite", "--skip-existing and --overwrite exclude each other"),
        (
            "a.png more/a.png --skip-existing",
            "--skip-existing needs a different name for each image; several are called a",
        ),
        ("a.png --skip-existing -o {seed}.png", "--skip-existing does not work with {seed} or {id} in --output"),
        ("empty", "there is no image in the folder empty: .png, .jpg, .jpeg, .webp"),
        ("a.png --url ftp://x", "--url must start with http:// or https://, got 'ftp://x'"),
    ],
)
def test_submit_reports_wrong_usage_before_it_sends_anything(folder: Path, options: str, message: str) -> None:
    (folder / "empty").mkdir()
    assert one_line(img2img(folder, "submit", *options.split()), code=2) == f"img2img: {message}"


def test_submit_reports_a_value_of_the_wrong_type(folder: Path) -> None:
    done = img2img(folder, "submit", "a.png", "--strength", "much")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Invalid value for '--strength'" in done.stderr


def test_commands_report_an_unreachable_service(folder: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    for command in (["submit", "a.png"], ["jobs"], ["result", "0" * 32]):
        result = img2img(folder, *command, "--url", url)
        assert result.returncode == 3
        assert result.stdout == ""
        assert result.stderr.splitlines()[-1].startswith(f"img2img: {url} cannot be reached: ")


def test_submit_prints_a_line_for_each_rejected_field(folder: Path, url: str) -> None:
    done = img2img(folder, "submit", "a.png", "--strength", 2, "--steps", 0, "--url", url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "img2img: 2 fields were rejected",
        "  strength: Input should be less than or equal to 1 (got 2.0)",
        "  num_inference_steps: Input should be greater than or equal to 1 (got 0)",
    ]


def test_result_saves_the_other_images_when_one_is_damaged(
    folder: Path, url: str, submit: Callable[..., httpx.Response], finish: Callable[[str], bytes], store: ObjectStore
) -> None:
    job_id = submit(num_images=3).json()["id"]
    finish(job_id)
    damage(store, result_key(job_id, 1), DAMAGES["truncated"])
    done = img2img(folder, "result", job_id, "-o", "{index}.png", "--url", url)
    assert (done.returncode, done.stdout.split()) == (1, ["0.png", "2.png"])
    assert "Image 1 of the job is damaged or missing" in done.stderr
