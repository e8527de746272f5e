"""Words for the classes that a model of detection or segmentation knows."""

from collections.abc import Mapping, Sequence

from img2img.domain.masks import known_as
from img2img.errors import JobError

from ...errors import StartupError

# Names of classes that have none.
UNNAMED = "label_"


class ClassNames:
    """The names of classes. A class can have several, separated by commas or semicolons."""

    def __init__(self, labels: Mapping[int, str]) -> None:
        """Read `id2label` of a configuration.

        Raises:
            StartupError: the classes have no names.
        """
        self._classes: dict[str, list[int]] = {}
        for number, label in labels.items():
            for name in label.lower().replace(";", ",").split(","):
                if name.strip() and not name.strip().startswith(UNNAMED):
                    self._classes.setdefault(name.strip(), []).append(int(number))
        if not self._classes:
            raise StartupError("its classes have no names; set `id2label` in its config.json")

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self._classes)

    def find(self, words: Sequence[str]) -> set[int]:
        """Return the classes that words in lower case name.

        Raises:
            JobError: there is none for some of the words.
        """
        classes: set[int] = set()
        for phrase in words:
            name = known_as(phrase, self._classes)
            if name is None:
                raise JobError(f"the segmenter does not know {phrase!r}; it knows: {', '.join(self._classes)}")
            classes.update(self._classes[name])
        return classes
