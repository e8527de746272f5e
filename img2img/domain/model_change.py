"""Changes of models by request, and how they combine with a model file."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from img2img.domain.conditioning import LoraName
from img2img.domain.model_config import ComponentSource, ModelConfig


class ModelChange(BaseModel):
    """How requests have changed a model. It takes precedence over the model file of a worker.

    Attributes:
        model: The model as a request has defined it; None: as the model file defines it.
        removed: Whether no worker serves the model, also if its model file has it. Jobs that wait for it are finished
            as the other attributes define it.
        loras: LoRAs that were added to the model; None: that were removed from it.
        revision: Number of the latest change of this model among all changes.
    """

    model_config = ConfigDict(frozen=True)

    model: ModelConfig | None = None
    removed: bool = False
    loras: dict[LoraName, ComponentSource | None] = {}
    revision: int = 0

    @property
    def is_empty(self) -> bool:
        return self.has_same_effect(ModelChange())

    def has_same_effect(self, other: "ModelChange") -> bool:
        """Return whether both make the same change."""
        return self.model_copy(update={"revision": other.revision}) == other

    def with_lora(self, name: str, source: ComponentSource | None) -> "ModelChange":
        """Return the change with a LoRA added or replaced; None: removed."""
        return self.model_copy(update={"loras": {**self.loras, name: source}})

    def before_removal(self) -> "ModelChange":
        """Return the change by which jobs are finished that wait for a removed model."""
        return self.model_copy(update={"removed": False})

    def apply(self, config: ModelConfig | None, name: str) -> ModelConfig | None:
        """Return the model after the change; None if there is none.

        Args:
            config: The model in the model file, if that has it.
            name: Name of the model.
        """
        base = self.model or config
        if self.removed or base is None:
            return None
        loras = {**base.loras, **self.loras}
        kept = {lora: source for lora, source in loras.items() if source is not None}
        return base.model_copy(update={"name": name, "loras": kept})


def apply_changes(file: Mapping[str, ModelConfig], changes: Mapping[str, ModelChange]) -> dict[str, ModelConfig]:
    """Return the models of a model file after the changes, in the order of the file and then of the changes' names."""
    names = [*file, *sorted(changes.keys() - file.keys())]
    changed = {name: changes.get(name, ModelChange()).apply(file.get(name), name) for name in names}
    return {name: config for name, config in changed.items() if config is not None}
