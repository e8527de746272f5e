"""Files that only the user of the service may read."""

import logging
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from stat import S_IMODE, S_ISDIR

log = logging.getLogger(__name__)

# For processes: new files get mode 0600, new folders 0700.
UMASK = 0o077
OTHERS = 0o077
# Contents of the root folder of a file system.
FOREIGN = ("lost+found",)


def make_private(folder: Path, names: Collection[str]) -> None:
    """Create the folder with mode 0700, and take from other users the access to the entries that are ours.

    Earlier versions created files that every local user could read. The folder itself is restricted only if all of its
    entries are ours: it may be one that serves other purposes too.

    Args:
        names: Names of entries that are ours.

    Raises:
        OSError: The folder cannot be created or read.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    entries = [entry for entry in folder.iterdir() if entry.name not in FOREIGN]
    for entry in entries:
        if entry.name in names:
            _restrict(entry)
    if all(entry.name in names for entry in entries):
        _chmod(folder)


def _restrict(path: Path) -> None:
    """Restrict a file, or a folder with all its entries unless it is restricted already."""
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if S_ISDIR(mode) and mode & OTHERS:
            for entry in path.iterdir():
                _restrict(entry)
        if not path.is_symlink():
            # A folder last, so that an interrupted repair is repeated.
            _chmod(path)


def _chmod(path: Path) -> None:
    mode = S_IMODE(path.stat().st_mode)
    if not mode & OTHERS:
        return
    try:
        os.chmod(path, mode & ~OTHERS)  # noqa: PTH101
    except PermissionError:
        log.warning("%s belongs to another user and is accessible to others (mode %o)", path, mode)
