"""Response bodies about models that are added, changed and removed while the service runs."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from img2img.domain.model_card import ModelCard
from img2img.domain.model_change import ModelChange

State = Literal["loaded", "unloaded", "loading", "failed", "waiting"]


class ModelOnWorker(BaseModel):
    """A model on one worker."""

    worker: Annotated[str, Field(examples=["gpu-1-4711-5be0"])]
    state: Annotated[
        State,
        Field(
            description="`unloaded`: it is loaded when a job needs it; `waiting`: the worker has not followed the "
            "latest change yet."
        ),
    ]
    detail: Annotated[str | None, Field(description="Progress, or why it could not be loaded.")] = None
    loras_left_out: Annotated[
        dict[str, str],
        Field(description="LoRAs that it could not load and serves the model without, and why.", examples=[{}]),
    ] = {}


class ModelDetails(BaseModel):
    """A model, whether workers serve it, and how requests have changed it."""

    name: str
    state: Annotated[
        Literal["loaded", "unloaded", "loading", "failed", "waiting", "removed"],
        Field(
            description="The best state on any worker. `loaded`, `unloaded`: jobs are run as it is defined now; "
            "`waiting`: no worker has followed the latest change; `removed`: only jobs that wait already are run."
        ),
    ]
    detail: Annotated[str, Field(description="The state in a sentence.", examples=["2 workers have it in memory."])]
    default: Annotated[bool, Field(description="Whether it is used by requests that name no model.")]
    queued: Annotated[int, Field(description="Jobs waiting for this model.", examples=[2])]
    workers: list[ModelOnWorker]
    card: Annotated[ModelCard | None, Field(description="Its capabilities and defaults, once a worker has loaded it.")]
    change: Annotated[
        ModelChange | None,
        Field(description="How requests have changed it; null if none has. Needs an API key with the scope `admin`."),
    ] = None
