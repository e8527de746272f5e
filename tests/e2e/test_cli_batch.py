"""`img2img submit` with many images: the display, and what a second run of the same command does."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import httpx
import psutil
import pytest
from PIL import Image

from img2img.app.cli.inputs import find_inputs
from img2img.app.cli.job_runner import JobRunner
from img2img.app.cli.journal import NAME
from img2img.app.cli.outputs import Outputs
from img2img.app.settings import ApiSettings
from img2img.client import Client
from img2img.domain.job import JobStatus
from img2img.redis.job_queue import JobQueue
from tests.support.authenticated import authenticated_server
from tests.support.cli_command import COMMAND, environment, img2img, one_line
from tests.support.images import encoded, gradient
from tests.support.terminals import Terminal

IMAGES = 14
SIZE = ("--width", 64, "--height", 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with a folder of images."""
    (tmp_path / "photos").mkdir()
    for index in range(IMAGES):
        (tmp_path / "photos" / f"IMG_{index:04}.png").write_bytes(encoded(gradient(80, 60 + index)))
    return tmp_path


@pytest.fixture
def url(http: httpx.Client) -> str:
    return str(http.base_url)


def count(http: httpx.Client) -> int:
    """Return the number of jobs that the service knows."""
    return len(http.get("/jobs", params={"limit": 100}).json()["jobs"])


def interrupted(folder: Path, queue: JobQueue, jobs: int, *arguments: object) -> tuple[list[str], str]:
    """Interrupt `img2img submit` when it has submitted so many jobs. Returns their ids and stderr."""
    submit = psutil.Popen(
        [*COMMAND, "submit", *map(str, arguments)],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while len(queue.job_store.active_ids()) < jobs:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # Until the command has received the last response.
    time.sleep(0.5)
    submit.send_signal(signal.SIGINT)
    _, stderr = submit.communicate(timeout=90)
    assert submit.returncode == 130
    return list(queue.job_store.active_ids()), stderr


@pytest.mark.usefixtures("fake_worker")
def test_file_names_are_visible_above_the_display(folder: Path, url: str) -> None:
    command = [*COMMAND, "submit", "photos", "--output-dir", "out", *SIZE, "--url", url]
    terminal = Terminal(command, folder, environment(), columns=110)
    assert terminal.wait() == 0
    lines = [line for line in terminal.lines if line]
    assert sorted(line for line in lines if line.startswith("out/")) == [
        f"out/IMG_{index:04}.png" for index in range(IMAGES)
    ]
    [bar] = [line for line in lines if "━" in line]
    assert f"{IMAGES} of {IMAGES}" in bar
    assert lines[-1] == bar
    assert sum("the demo model generates small landscapes" in line for line in lines) == 1
    shown = terminal.raw.decode()
    assert f"0 of {IMAGES}, 0 sent" in shown
    assert len(lines) == IMAGES + 3, "and the note has two lines"


def test_display_of_running_jobs_fits_the_screen(
    folder: Path, url: str, queue: JobQueue, finish: Callable[[str], bytes]
) -> None:
    command = [*COMMAND, "submit", "photos", "--output-dir", "out", *SIZE, "--url", url]
    terminal = Terminal(command, folder, environment(), columns=60, lines=10)
    while len(queue.job_store.active_ids()) < IMAGES or b"IMG_0005" not in terminal.raw:
        assert terminal.read()
    for job_id in queue.job_store.active_ids():
        finish(job_id)
    assert terminal.wait() == 0
    lines = [line for line in terminal.lines if line]
    assert sum("━" in line for line in lines) == 1
    assert sum(line.startswith("out/") for line in lines) == IMAGES
    assert b"IMG_0006" not in terminal.raw.partition(b"out/")[0], "six rows fit below that of all"


def test_same_command_continues_after_an_interrupt(
    folder: Path, url: str, http: httpx.Client, queue: JobQueue, finish: Callable[[str], bytes]
) -> None:
    command = ("photos", "--output-dir", "out", *SIZE, "--url", url)
    jobs, stderr = interrupted(folder, queue, IMAGES, *command)
    assert stderr.splitlines() == [
        f"img2img: {IMAGES} jobs go on in the service",
        "  to continue: the same command",
        "  to cancel: img2img cancel --output-dir out",
    ]
    assert all(queue.job_store.find(job_id).status is JobStatus.QUEUED for job_id in jobs)
    for job_id in jobs:
        finish(job_id)
    done = img2img(folder, "submit", *command)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split()) == [f"out/IMG_{index:04}.png" for index in range(IMAGES)]
    assert count(http) == IMAGES
    again = img2img(folder, "submit", *command)
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr == f"img2img: {IMAGES} of {IMAGES} were finished before; --overwrite generates them again\n"
    skipped = [json.loads(line) for line in img2img(folder, "submit", *command, "--json").stdout.splitlines()]
    assert {entry["id"] for entry in skipped} == set(jobs)
    assert skipped[0]["files"] == ["out/IMG_0000.png"]
    assert count(http) == IMAGES


def test_interrupted_submission_is_not_repeated(
    folder: Path, url: str, http: httpx.Client, queue: JobQueue, finish: Callable[[str], bytes]
) -> None:
    """The command was killed before it received the id of a job, and while it wrote the journal."""
    command = ("photos/IMG_000[01].png", "--output-dir", "out", "--url", url)
    jobs, _ = interrupted(folder, queue, 2, *command)
    journal = folder / "out" / NAME
    lines = journal.read_text().splitlines()
    assert len(lines) == 4
    journal.write_text("".join(f"{line}\n" for line in lines if not json.loads(line)["id"]) + lines[3][:50])
    for job_id in jobs:
        finish(job_id)
    done = img2img(folder, "submit", *command)
    assert (done.returncode, len(done.stdout.split())) == (0, 2)
    assert count(http) == 2
    assert img2img(folder, "submit", *command).stdout == ""


@pytest.mark.parametrize("change", ["cancel", "delete"])
def test_lost_jobs_are_submitted_again(
    folder: Path, url: str, queue: JobQueue, finish: Callable[[str], bytes], change: str
) -> None:
    command = ("photos/IMG_000[01].png", "--output-dir", "out", "--url", url)
    interrupted(folder, queue, 2, *command)
    lines = (folder / "out" / NAME).read_text().splitlines()
    jobs = [entry["id"] for entry in map(json.loads, lines) if entry["id"]]
    img2img(folder, change, jobs[0], "--url", url)
    finish(jobs[1])
    [again], _ = interrupted(folder, queue, 1, *command)
    assert again not in jobs
    finish(again)
    assert img2img(folder, "submit", *command).stdout == "out/IMG_0000.png\n"
    assert len(list((folder / "out").glob("*.png"))) == 2


@pytest.mark.usefixtures("fake_worker")
def test_what_is_generated_again(folder: Path, url: str, http: httpx.Client) -> None:
    command = ("submit", "photos/IMG_000[01].png", "--output-dir", "out", "--url", url)

    def new_jobs(*options: object) -> int:
        before = count(http)
        assert img2img(folder, *command, *options).returncode == 0
        return count(http) - before

    assert new_jobs() == 2
    assert new_jobs() == 0
    (folder / "out" / "IMG_0000.png").unlink()
    assert new_jobs() == 0, "the result is downloaded again"
    assert (folder / "out" / "IMG_0000.png").exists()
    assert new_jobs("--overwrite") == 2
    assert new_jobs("--prompt", "another") == 2
    assert new_jobs("--prompt", "another", "--skip-existing", "--seed", 1) == 0
    assert new_jobs("--format", "webp") == 2
    (folder / "photos" / "IMG_0000.png").write_bytes(encoded(gradient(90, 90)))
    assert new_jobs() == 1
    assert sorted(path.name for path in (folder / "out").glob("*.*g*")) == [NAME, "IMG_0000.png", "IMG_0001.png"]


@pytest.mark.usefixtures("fake_worker")
def test_results_are_no_inputs_of_the_next_run(folder: Path, url: str, http: httpx.Client) -> None:
    photos = folder / "photos"
    for image in list(photos.iterdir())[2:]:
        image.unlink()
    done = img2img(photos, "submit", "*.png", "--url", url)
    assert (done.returncode, done.stderr, len(done.stdout.split())) == (0, "", 2)
    again = img2img(photos, "submit", "*.png", "--url", url)
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr.startswith("img2img: 2 of the images are results of earlier commands, and are no inputs\n")
    assert count(http) == 2


def test_result_and_cancel_know_the_jobs_of_a_folder(
    folder: Path, url: str, http: httpx.Client, finish: Callable[[str], bytes]
) -> None:
    options = ("--output-dir", "out", "--url", url)
    first, second, third = img2img(folder, "submit", "photos/IMG_000[012].png", "--no-wait", *options).stdout.split()
    finish(first)
    result = img2img(folder, "result", first, *options)
    assert (result.returncode, result.stdout) == (0, "out/IMG_0000.png\n")
    finish(second)
    cancelled = img2img(folder, "cancel", "--output-dir", "out", "--url", url)
    assert (cancelled.returncode, cancelled.stdout) == (0, f"{second} succeeded\n{third} cancelled\n")
    result = img2img(folder, "result", *options)
    assert (result.returncode, result.stdout) == (1, "out/IMG_0001.png\n")
    assert "IMG_0002.png: the job was cancelled" in result.stderr
    assert (
        one_line(img2img(folder, "result", "--output-dir", "photos"), 2) == "img2img: no jobs are unfinished in photos"
    )
    assert one_line(img2img(folder, "cancel"), 2).startswith("img2img: name jobs by their ids, or the --output-dir")


def test_interrupt_without_a_folder_prints_the_ids(folder: Path, url: str, queue: JobQueue) -> None:
    [job], stderr = interrupted(folder, queue, 1, "photos/IMG_0000.png", "-o", "a.png", "--url", url)
    assert stderr.splitlines() == [
        "img2img: 1 job goes on in the service",
        f"  to wait for results: img2img result {job}",
        f"  to cancel: img2img cancel {job}",
    ]


@pytest.mark.usefixtures("fake_worker")
def test_suffix_and_format_option_choose_the_format(folder: Path, url: str) -> None:
    one = "photos/IMG_0000.png"
    for options, name, format in (
        ("-o a.jpg", "a.jpg", "JPEG"),
        ("-o b.WEBP --quality 50", "b.WEBP", "WEBP"),
        ("-o c --format jpeg", "c", "JPEG"),
        ("--output-dir d --format webp", "d/IMG_0000.webp", "WEBP"),
        ("--format jpeg --num-images 2", "out-0.jpg", "JPEG"),
        ("-o e{stem}/{index}.png", "eIMG_0000/0.png", "PNG"),
    ):
        done = img2img(folder, "submit", one, *options.split(), *SIZE, "--url", url)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[0] == name
        assert Image.open(folder / name).format == format


def test_batch_larger_than_the_queue_waits_for_its_own_jobs(
    folder: Path,
    settings: ApiSettings,
    http: httpx.Client,
    queue: JobQueue,
    finish: Callable[[str], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Longer than the client repeats a submission that is refused because the queue is full."""
    monkeypatch.setattr("img2img.client.core.BUSY_S", 0)
    monkeypatch.chdir(folder)
    refused_until = time.monotonic() + 3

    def work() -> None:
        if time.monotonic() > refused_until:
            for job_id in queue.job_store.active_ids():
                finish(job_id)

    inputs = find_inputs(["photos/IMG_000[0-2].png"])
    outputs = Outputs(None, Path("out"), [one.name for one in inputs])
    with (
        authenticated_server(settings, keys="auto", max_queued=1) as url,
        Client(url) as client,
        JobRunner(client, on_idle=work) as batch,
    ):
        batch.run(inputs, {}, outputs)
    assert sorted(path.name for path in Path("out").iterdir()) == [f"IMG_000{index}.png" for index in range(3)]
    assert count(http) == 3


@pytest.mark.usefixtures("fake_worker")
def test_unreadable_files_stop_none_of_the_others(folder: Path, url: str) -> None:
    (folder / "photos" / "IMG_0001.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    done = img2img(folder, "submit", "photos", "--output-dir", "out", *SIZE, "--url", url)
    assert done.returncode == 1
    assert "IMG_0001.png: image: The PNG image is broken" in done.stderr
    assert len(done.stdout.split()) == IMAGES - 1


@pytest.mark.usefixtures("fake_worker")
def test_batch_of_the_service(folder: Path, url: str) -> None:
    lines = [
        {"image": "photos/IMG_0000.png", "prompt": "a house", "name": "first", "width": 64, "height": 64},
        {"image": "photos/IMG_0001.png", "width": 64, "height": 64},
    ]
    (folder / "batch.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def batches(*arguments: object) -> list[str]:
        done = img2img(folder, "batches", *arguments, "--url", url)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    [batch] = batches("submit", "batch.jsonl")
    assert [line.split()[1] for line in batches("wait", batch)] == ["succeeded"] * 2
    assert any(batch in line and "2 succeeded of 2" in line for line in batches())
    assert "status: ended" in batches("show", batch)
    assert batches("download", batch, "--format", "webp") == [f"{batch}.zip"]
    with ZipFile(folder / f"{batch}.zip") as archive:
        assert archive.namelist() == ["first.webp", "00001.webp", "jobs.jsonl"]
    assert json.loads(batches("cancel", batch, "--json")[0])["counts"]["succeeded"] == 2
    assert batches("delete", batch) == [f"{batch} deleted"]
    (folder / "batch.jsonl").write_text('{"image": "photos/IMG_0000.png"}\n{')
    assert "batch.jsonl, line 2" in one_line(img2img(folder, "batches", "submit", "batch.jsonl", "--url", url), 2)


def test_help_of_every_command_fits_80_columns(folder: Path) -> None:
    for command in ("submit", "result", "jobs", "cancel", "models", "serve", "keys create"):
        text = img2img(folder, *command.split(), "--help", COLUMNS="80", TERM="dumb").stdout
        assert max(map(len, text.splitlines())) <= 80
        assert "…" not in text
        assert not {"<str>", "<bool>", "<path>", "{", "(False)"} & set(text.replace("{stem}, {index}", "").split())
    assert "Usage: python -m img2img.app.cli submit [OPTIONS] IMAGE..." in img2img(folder, "submit", "--help").stdout
    assert "--control canny:0.8" in img2img(folder, "submit", "--help").stdout


def test_shell_completion_is_available(folder: Path) -> None:
    done = img2img(folder, "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0, done.stderr
    assert "complete" in done.stdout
