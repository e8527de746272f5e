"""Files of the service are accessible to its user only, also those that an earlier version left."""

import os
from pathlib import Path
from stat import S_IMODE

import pytest

from img2img.app.supervisor.supervisor import DATA_ENTRIES, lock_data_dir
from img2img.blobs import ObjectStore
from img2img.private_files import make_private


@pytest.fixture(autouse=True)
def usual_umask() -> None:
    os.umask(0o022)


def mode(path: Path) -> str:
    return f"{S_IMODE(path.stat().st_mode):o}"


def modes(folder: Path) -> set[tuple[bool, str]]:
    """Return the modes below a folder, each with whether it is a folder's."""
    return {(path.is_dir(), mode(path)) for path in folder.rglob("*")}


def earlier_data(folder: Path) -> None:
    """Make the files that an earlier version made."""
    for name in ("redis/appendonlydir/appendonly.aof", "store/results/a/0.png", "store/check", "serve.lock"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"private")
        assert mode(path) == "644"


def test_new_data_directory_is_private(tmp_path: Path) -> None:
    with lock_data_dir(tmp_path / "data"):
        assert mode(tmp_path / "data") == "700"
        assert modes(tmp_path / "data") == {(False, "600")}


def test_data_of_an_earlier_version_becomes_private(tmp_path: Path) -> None:
    earlier_data(tmp_path / "data")
    with lock_data_dir(tmp_path / "data"):
        assert mode(tmp_path / "data") == "700"
        assert modes(tmp_path / "data") == {(True, "700"), (False, "600")}


def test_interrupted_repair_is_repeated(tmp_path: Path) -> None:
    earlier_data(tmp_path)
    (tmp_path / "store" / "results").chmod(0o700)
    (tmp_path / "redis" / "appendonlydir" / "appendonly.aof").chmod(0o600)
    make_private(tmp_path, DATA_ENTRIES)
    assert mode(tmp_path / "store") == mode(tmp_path / "redis" / "appendonlydir") == "700"


def test_folder_with_other_files_keeps_them_accessible(tmp_path: Path) -> None:
    earlier_data(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"public")
    (tmp_path / "script").touch(0o755)
    tmp_path.chmod(0o755)
    make_private(tmp_path, DATA_ENTRIES)
    assert mode(tmp_path) == mode(tmp_path / "photos") == mode(tmp_path / "script") == "755"
    assert mode(tmp_path / "photos" / "a.png") == "644"
    assert mode(tmp_path / "store") == mode(tmp_path / "redis") == "700"


def test_links_are_not_followed(tmp_path: Path) -> None:
    elsewhere, data = tmp_path / "elsewhere", tmp_path / "data"
    elsewhere.touch()
    (data / "store").mkdir(parents=True)
    (data / "store" / "link").symlink_to(elsewhere)
    (data / "store" / "broken").symlink_to(tmp_path / "nothing")
    make_private(data, DATA_ENTRIES)
    assert (mode(elsewhere), mode(data / "store")) == ("644", "700")


def test_local_store_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    ObjectStore(folder.as_uri())
    assert mode(folder) == "700"
    earlier_data(tmp_path)
    folder.chmod(0o755)
    ObjectStore(folder.as_uri())
    assert mode(folder) == "700"
    assert modes(folder) == {(True, "700"), (False, "600")}


def test_folder_of_another_user_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "store").mkdir()

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "chmod", refuse)
    make_private(tmp_path, ("store",))
    assert "belongs to another user and is accessible to others (mode 755)" in caplog.text
