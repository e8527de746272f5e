"""Files on the model hub: which a repository has, and the true cause if they cannot be had."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ...errors import HubUnavailable, StartupError, first_line

log = logging.getLogger(__name__)

# A hub that does not answer within this time, in seconds, counts as unreachable. huggingface_hub retries for longer.
TIMEOUT_S = 5.0
_HTTP_UNAUTHORIZED, _HTTP_FORBIDDEN = 401, 403


def allow_downloads() -> None:
    """Permit requests to the hub after a change of the models, unless the operator forbids them with HF_HUB_OFFLINE."""
    if os.environ.get("OFFLINE_UNTIL_CHANGE"):
        constants.HF_HUB_OFFLINE = False


class HubRepository:
    """A repository on the hub, or what the cache has of it if the hub is unreachable or HF_HUB_OFFLINE is set.

    Attributes:
        files: names of its files; None without the hub.
    """

    def __init__(self, source: str, revision: str | None) -> None:
        """Ask the hub for the names of the files.

        Raises:
            StartupError: there is no such repository or revision, or no access to it.
        """
        self.source = source
        self.revision = revision
        self.files: tuple[str, ...] | None = None
        self._why_not = "HF_HUB_OFFLINE is set"
        if constants.HF_HUB_OFFLINE:
            return
        with _reporting(source, revision):
            try:
                info = HfApi().model_info(source, revision=revision, timeout=TIMEOUT_S)
            except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
                raise
            except HfHubHTTPError as error:
                if error.response.status_code in (_HTTP_UNAUTHORIZED, _HTTP_FORBIDDEN):
                    raise
                self._why_not = f"{constants.ENDPOINT} answered with {error.response.status_code}"
            # Errors of the HTTP client, whose library huggingface_hub does not expose.
            except Exception as error:
                self._why_not = f"{constants.ENDPOINT} cannot be reached ({first_line(error)})"
            else:
                self.files = tuple(sibling.rfilename for sibling in info.siblings or ())
        if self.files is None:
            log.warning("%s: %s; the files in the cache are used", source, self._why_not)

    @property
    def is_cached_only(self) -> bool:
        return self.files is None

    def has(self, name: str) -> bool:
        """Return whether the repository, or the cache without the hub, has a file."""
        if self.files is not None:
            return name in self.files
        return isinstance(try_to_load_from_cache(self.source, name, revision=self.revision), str)

    def file(self, name: str) -> Path:
        """Return the path of a file, downloading it if necessary.

        Raises:
            StartupError: there is no such file, or no access to it.
        """
        if self.files is not None and name not in self.files:
            raise StartupError(f"{self.source} has no file {name}; check `weight_name`, `subfolder` and `revision`")
        if self.files is None and not self.has(name):
            raise self.not_cached(name)
        with _reporting(self.source, self.revision):
            return Path(
                hf_hub_download(self.source, name, revision=self.revision, local_files_only=self.is_cached_only)
            )

    def folder(self, names: list[str]) -> Path:
        """Download files, and return the folder that has them."""
        with _reporting(self.source, self.revision):
            return Path(snapshot_download(self.source, revision=self.revision, allow_patterns=names))

    def not_cached(self, name: str) -> StartupError:
        """Return the error about a file that is not in the cache."""
        kind = StartupError if constants.HF_HUB_OFFLINE else HubUnavailable
        return kind(f"{self.source}: {name} is not in the cache {constants.HF_HUB_CACHE}, and {self._why_not}")


@contextmanager
def _reporting(source: str, revision: str | None) -> Iterator[None]:
    """Raise the errors of huggingface_hub as StartupError."""
    page = f"{constants.ENDPOINT}/{source}"
    try:
        yield
    except GatedRepoError as error:
        raise StartupError(
            f"access to {source} is restricted: accept its terms at {page}, and set HF_TOKEN to a token of that account"
        ) from error
    except RevisionNotFoundError as error:
        raise StartupError(f"{source} has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise StartupError(
            f"there is no folder {source}, and no repository of that name at {constants.ENDPOINT}; check the name; "
            "set HF_TOKEN if it is private"
        ) from error
    except HFValidationError as error:
        raise StartupError(f"{source!r} is neither an existing folder nor a hub id such as org/name") from error
    except LocalEntryNotFoundError as error:
        raise HubUnavailable(
            f"the download of {source} failed: {first_line(error.__cause__ or error)}; start again to go on with it"
        ) from error
    except EntryNotFoundError as error:
        raise StartupError(f"{source} has no such file: {first_line(error)}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (_HTTP_UNAUTHORIZED, _HTTP_FORBIDDEN):
            raise StartupError(
                f"no access to {source}: set HF_TOKEN to a token that may read {page} (the hub answered {status})"
            ) from error
        raise HubUnavailable(f"{constants.ENDPOINT} answered with {status} for {source}; try again later") from error
