"""Images are on the disk before a record or a response says so, and survive a loss of power."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from img2img.blobs import ObjectStore
from img2img.domain.blob_keys import input_key, result_key, upload_key
from img2img.domain.job import JobStatus
from img2img.durable_files import UNFINISHED, UNFINISHED_S, create_file
from tests.support.damage import DAMAGES, damage
from tests.support.durable_workers import LOG, log_writes, run_logged
from tests.support.images import encoded, gradient
from tests.support.processes import Service


def assert_synced(lines: list[str], file: Path, folders: list[Path]) -> None:
    """Assert that the lines contain a sync of the content, the new name, and syncs of its folders, in this order."""
    [named] = [at for at, line in enumerate(lines) if line.startswith("name ") and line.endswith(f" {file}")]
    unfinished = lines[named].split(" ")[1]
    assert f"sync {unfinished}" in lines[:named], "the content is synced before it has its name"
    assert f"sync {file.parent}" in lines[named:], "the name is synced"
    for folder in folders:
        assert f"sync {folder}" in lines, "a new folder is synced"


def test_worker_syncs_images_before_the_job_succeeds(service: Service, tmp_path: Path) -> None:
    log = tmp_path / "writes"
    service.start_worker(run=run_logged, **{LOG: str(log)})
    job_id = service.submit(num_images=2)
    service.wait_until(job_id, JobStatus.SUCCEEDED)
    lines = log.read_text().splitlines()
    before = lines[: lines.index("job succeeded")]
    store = (service.folder / "store").resolve()
    for index in range(2):
        assert_synced(before, store / result_key(job_id, index), [store / "results"])


def test_api_server_syncs_images_before_it_responds(
    http: httpx.Client, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_bytes = encoded(gradient(71, 83, blue=7))
    lines: list[str] = []
    log_writes(lines.append, monkeypatch.setattr)
    assert store._folder is not None
    folder = store._folder.resolve()
    assert http.post("/images", files={"image": image_bytes}).status_code == 201
    assert_synced(lines, folder / upload_key(sha256(image_bytes).hexdigest()), [])
    job = http.post("/img2img", files={"image": image_bytes}).json()
    assert_synced(lines, folder / input_key(job["request"]["image"]), [])


@contextmanager
def disk(image: Path, folder: Path) -> Iterator[None]:
    """Mount the file system of a disk image."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop,commit=300", str(image), str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def can_mount() -> bool:
    if os.geteuid() != 0 or not (shutil.which("losetup") and shutil.which("mkfs.ext4")):
        return False
    return not subprocess.run(["losetup", "--find"], capture_output=True, check=False).returncode


@pytest.mark.skipif(not can_mount(), reason="needs root and a loop device")
@pytest.mark.parametrize("write", ["put", "replace"])
def test_image_survives_a_loss_of_power(tmp_path: Path, write: str) -> None:
    """A copy of the disk, made without a sync of the file system, is its content after a loss of power."""
    image, copy = tmp_path / "disk", tmp_path / "disk-after"
    subprocess.run(["truncate", "--size=32M", str(image)], check=True)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    data = {f"results/{number:032x}/0.png": os.urandom(300_000) for number in range(5)}
    with disk(image, tmp_path / "before"):
        store = ObjectStore((tmp_path / "before" / "store").as_uri())
        for key, png in data.items():
            if write == "replace":
                store.put(key, b"damaged")
            assert getattr(store, write)(key, png) in (True, None)
        (tmp_path / "before" / "not-synced").write_bytes(b"x" * 300_000)
        copy.write_bytes(image.read_bytes())
    with disk(copy, tmp_path / "after"):
        assert not (tmp_path / "after" / "not-synced").exists(), "this test could not fail"
        after = ObjectStore((tmp_path / "after" / "store").as_uri())
        assert {key: after.get(key) for key in data} == data


@pytest.mark.parametrize("change", [*DAMAGES.values(), None], ids=[*DAMAGES, "missing"])
def test_job_with_a_damaged_input_fails_once(service: Service, change: Callable[[bytes], bytes] | None) -> None:
    damage(service.store, input_key(service.image), change)
    service.start_worker()
    record = service.wait_until(service.submit(), JobStatus.FAILED)
    assert record.error is not None
    assert (record.error.code, record.attempts) == ("input_damaged", 1)
    assert service.image not in record.error.message
    assert service.image not in (service.folder / "workers.log").read_text()


def test_damaged_image_of_a_lost_worker_is_rendered_again(service: Service) -> None:
    job_id = service.submit(num_images=2)
    service.jobs.claim("tiny")
    service.job_store.start(job_id, execution="e", worker="w")
    for index in range(2):
        service.store.put(result_key(job_id, index), b"")
    service.jobs.requeue(job_id, execution="e")
    service.start_worker()
    record = service.wait_until(job_id, JobStatus.SUCCEEDED)
    assert record.attempts == 2
    service.assert_finished_once([record])


def test_unfinished_files_are_removed_later(tmp_path: Path) -> None:
    url = tmp_path.as_uri()
    ObjectStore(url).put("a", b"1")
    old, new = (tmp_path / UNFINISHED / name for name in ("old", "new"))
    for file in (old, new):
        file.write_bytes(b"part")
    os.utime(old, (0, new.stat().st_mtime - UNFINISHED_S - 1))
    ObjectStore(url)
    assert (old.exists(), new.exists()) == (False, True)


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    create_file(tmp_path, "results/a/0.png", b"earlier")
    monkeypatch.setattr(os, "fsync", fail)
    for name, replace in (("results/a/0.png", True), ("results/a/1.png", False)):
        with pytest.raises(OSError, match="Input/output"):
            create_file(tmp_path, name, b"new", replace=replace)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [tmp_path / "results/a/0.png"]
    assert (tmp_path / "results/a/0.png").read_bytes() == b"earlier"


def test_files_are_private(tmp_path: Path) -> None:
    store = ObjectStore((tmp_path / "store").as_uri())
    store.put("results/a/0.png", b"1")
    store.replace("inputs/b.png", b"1")
    modes = {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "store").rglob("*") if path.is_file()}
    folders = {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "store").rglob("*") if path.is_dir()}
    assert (modes, folders) == ({"0o600"}, {"0o700"})
