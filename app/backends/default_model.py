"""DefaultModel: the model of requests that name none. It follows the model file."""

import logging
import time

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
    """

    def __init__(self, settings: SharedSettings) -> None:
        self._name = model_name(settings.model)
        self._file = settings.models_file if settings.model_of_file else None
        self._version = version_of(self._file) if self._file else None
        self._checked_at = time.monotonic()

    @property
    def name(self) -> str:
        """Name of the model. A file that cannot be read changes nothing."""
        if self._file and time.monotonic() - self._checked_at > CHECK_S:
            self._checked_at = time.monotonic()
            version = version_of(self._file)
            if version != self._version:
                self._version = version
                try:
                    self._name = model_name(first_model(self._file))
                except ValueError as error:
                    log.warning("the default model is still %s: %s", self._name, error)
        return self._name
