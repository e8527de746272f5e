"""DefaultModel: the model of requests that name none. It follows the model file."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from img2img.domain.model_card import model_name
from img2img.file_watch import version_of
from img2img.settings import SharedSettings, first_model

# The file is looked at again after this time.
CHECK_S = 1.0

log = logging.getLogger(__name__)


class DefaultModel:
    """The default model: that of the settings, or else the first model of the model file as it is now.

    Args:
        settings: Settings that were just read.
        is_known: Returns whether workers have registered a model. Raises RedisError.
    """

    def __init__(self, settings: SharedSettings, is_known: Callable[[str], bool]) -> None:
        self._name = self._next = model_name(settings.model)
        self._is_known = is_known
        self._file = settings.models_file if settings.model_of_file else None
        self._version = version_of(self._file) if self._file else None
        self._checked_at = time.monotonic()

    @property
    def name(self) -> str:
        """Name of the model. A file that cannot be read changes nothing, and a new model counts once it is known."""
        if self._file and time.monotonic() - self._checked_at > CHECK_S:
            self._checked_at = time.monotonic()
            self._check_file(self._file)
        if self._next != self._name and (self._is_known(self._next) or not self._is_known(self._name)):
            self._name = self._next
        return self._name

    def _check_file(self, file: Path) -> None:
        version = version_of(file)
        if version == self._version:
            return
        self._version = version
        try:
            self._next = model_name(first_model(file))
        except ValueError as error:
            log.warning("the default model is still %s: %s", self._name, error)
