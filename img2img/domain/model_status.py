"""States of the models in a worker."""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class ModelState(StrEnum):
    """Whether a worker can run jobs of a model."""

    UNLOADED = "unloaded"  # its weights are not in memory; they are loaded when jobs need them
    LOADING = "loading"
    LOADED = "loaded"
    FAILED = "failed"  # it could not be loaded


class Batching(StrEnum):
    """How calls of a module by several jobs are merged, from the most exact."""

    EXACT = "exact"  # each row as in a call of one job, to the bit, as far as two rows show
    ROUNDING = "rounding"  # each row as in a call of one job, except for the last bits
    ALONE = "alone"  # not: rows depend on each other, or a merged call gains nothing
    UNKNOWN = "unknown"  # two jobs have not met yet


class ModelStatus(BaseModel):
    """State and size of a model in one worker."""

    model_config = ConfigDict(frozen=True)

    state: ModelState
    percent: Annotated[
        int | None,
        Field(
            description="While it is loading: bytes read, in percent of `disk_bytes`, or the part that was downloaded."
        ),
    ] = None
    disk_bytes: Annotated[int | None, Field(description="Size of its weight files, if they are on the disk.")] = None
    memory_bytes: Annotated[
        int | None,
        Field(description="Memory of its weights: measured once it was loaded, before that the size they will have."),
    ] = None
    batching: Annotated[
        dict[str, Batching],
        Field(
            description="How calls of its modules by several jobs are merged, while it is loaded: `exact` to the bit, "
            "`rounding` with other last bits, `alone` not, `unknown` before the first such call."
        ),
    ] = {}
    changing: Annotated[bool, Field(description="Whether a change of its LoRAs is still being followed.")] = False
    # Why it could not be loaded. Can contain paths.
    error: str | None = None
