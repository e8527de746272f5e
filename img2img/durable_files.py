"""Creates files that survive a loss of power: a file has its whole content before it has its name.

https://lwn.net/Articles/457667/. obstore writes files without fsync.
"""

import errno
import os
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

# Folder of unfinished files, beside the folders of finished ones.
UNFINISHED = "unfinished"
# A process that was killed leaves its unfinished file. It is removed after this time.
UNFINISHED_S = 3600
# Attempts to create a file whose folder is removed at the same time.
ATTEMPTS = 10


def create_file(root: Path, name: str, data: bytes, *, replace: bool = False) -> bool:
    """Write a file, and its name and folders, to the disk. Returns whether this call wrote it.

    Args:
        root: The folder of all files. It exists.
        name: Path of the file in `root`.
        replace: Replace the file if it exists.

    Raises:
        OSError: The file could not be written. It has its earlier content, or does not exist.
    """
    unfinished = root / UNFINISHED / uuid4().hex
    _make_folder(unfinished.parent)
    try:
        _write(unfinished, data)
        return _give_name(unfinished, root / name, replace)
    finally:
        with suppress(FileNotFoundError):
            unfinished.unlink()


def remove_unfinished(root: Path) -> None:
    """Remove the files that killed processes have left unfinished."""
    with suppress(FileNotFoundError):
        for file in (root / UNFINISHED).iterdir():
            with suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > UNFINISHED_S:
                    file.unlink()


def _write(file: Path, data: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(descriptor)


def _give_name(unfinished: Path, file: Path, replace: bool) -> bool:
    for attempt in range(ATTEMPTS):
        _make_folder(file.parent)
        try:
            if replace:
                unfinished.replace(file)
            else:
                os.link(unfinished, file)
        except FileExistsError:
            # The writer of that file may not have synced its folder yet.
            _sync_folder(file.parent)
            return False
        except FileNotFoundError:
            # The folder was empty and has been removed.
            if attempt == ATTEMPTS - 1:
                raise
        else:
            _sync_folder(file.parent)
            return True
    raise AssertionError


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder: the server does it.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
