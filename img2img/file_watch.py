"""FileWatch: notices that a file has changed, when its writer has finished."""

from pathlib import Path

# Time of change, size and number of a file; None: there is no such file.
Version = tuple[int, int, int] | None


def version_of(path: Path) -> Version:
    """Return a value that changes with the content of a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class FileWatch:
    """Watches a file by polling, which also works for network file systems and for links that are replaced.

    Args:
        path: The file, which was just read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._used = self._last = version_of(path)

    def has_changed(self) -> bool:
        """Return whether there is a version that was not there before, once, when it is the same in two calls."""
        version, last = version_of(self.path), self._last
        self._last = version
        if version == self._used or version != last:
            return False
        self._used = version
        return True
