"""LoRAs of a folder: every safetensors file in it is a LoRA, named by its file name without the suffix.

Characters that a name cannot have become hyphens, see `lora_name_of`.
"""

import logging
from collections.abc import Collection, Iterator
from pathlib import Path

from safetensors import safe_open

from img2img.domain.conditioning import lora_name_of
from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.file_watch import Version, version_of

from ...errors import StartupError
from .weight_files import check_file
from .weight_kinds import kind_of_weights

# Words in the names of kinds of weights that are no LoRAs of any format.
OTHER_KINDS = (
    "autoencoder",
    "checkpoint",
    "ControlNet",
    "denoiser",
    "IP-Adapter",
    "text encoder",
    "textual inversion",
)

log = logging.getLogger(__name__)


class LoraFolders:
    """Reads the folders of LoRAs again and again.

    A file is used when it is complete: its size is that of its header, and it has not changed since the call before. A
    file that is being replaced counts as it was until then.
    """

    def __init__(self) -> None:
        # Versions at the last reading, and of those which files are LoRAs.
        self._last: dict[Path, Version] = {}
        self._checked: dict[Path, tuple[Version, bool]] = {}
        self._read: set[Path] = set()

    def expand(self, config: ModelConfig, hidden: Collection[str] = ()) -> ModelConfig:
        """Return the configuration with the LoRAs of its folder.

        Args:
            hidden: names of LoRAs to leave out.
        """
        if config.lora_folder is None:
            return config
        found = dict(self._usable(Path(config.lora_folder)))
        shown = {name: source for name, source in found.items() if name not in hidden}
        return config.model_copy(update={"loras": {**shown, **config.loras}})

    def _usable(self, folder: Path) -> Iterator[tuple[str, ComponentSource]]:
        is_first_time = folder not in self._read
        self._read.add(folder)
        # Hidden files belong to programs that are still writing them.
        for path in sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith(".")):
            version, last = version_of(path), self._last.get(path)
            self._last[path] = version
            if version is not None and (is_first_time or last == version):
                self._check(path, version)
            checked, is_usable = self._checked.get(path, (None, False))
            if version is not None and is_usable:
                # So that a file that was replaced makes another configuration.
                yield (
                    lora_name_of(path.stem),
                    ComponentSource(source=str(path), revision="-".join(map(str, checked or ()))),
                )

    def _check(self, path: Path, version: Version) -> None:
        """Find out whether this version of a file is a LoRA. Logs once why it is not."""
        if self._checked.get(path, (None, False))[0] == version:
            return
        problem = _problem(path)
        if problem:
            log.warning("%s is left out: %s", path, problem)
        self._checked[path] = (version, problem is None)


def _problem(path: Path) -> str | None:
    """Return why a file is not a LoRA, or None. Reads its header only."""
    if not lora_name_of(path.stem):
        return "its name has none of the letters A-Z and no digit; rename it"
    try:
        check_file(path)
        with safe_open(path, framework="pt") as weights:
            kind = kind_of_weights(list(weights.keys()))
    except (StartupError, OSError) as error:
        return str(error)
    is_other = kind is None or any(other in kind for other in OTHER_KINDS)
    return f"it is {kind or 'no LoRA'}" if is_other else None
