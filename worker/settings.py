"""Settings of the worker, read from `IMG2IMG_*` variables."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ByteSize, Field, StringConstraints, field_validator

from img2img.settings import SharedSettings


class WorkerSettings(SharedSettings):
    slots: Annotated[int, Field(ge=1, le=256, description="Images or tiles in flight at once.")] = 16
    max_rows: Annotated[
        int, Field(ge=2, le=1024, description="Maximum rows of one forward pass. An image with guidance uses two rows.")
    ] = 64
    revision: Annotated[str | None, Field(description="Revision of a model from the Hugging Face Hub.")] = None
    serve: Annotated[
        str | None,
        Field(description="Comma-separated models to serve. Unset: all models in the model file."),
    ] = None
    preload: Annotated[
        str | None,
        Field(description="Comma-separated models to load at the start; empty for none. Unset: the first model."),
    ] = None
    max_loaded_models: Annotated[
        int | None, Field(ge=1, description="Maximum number of models in memory. Unset: as many as fit.")
    ] = None
    model_memory: Annotated[
        ByteSize | None,
        Field(gt=0, description="Maximum memory of the weights of all models, such as `20GB`. Unset: the free memory."),
    ] = None
    mode: Annotated[
        Literal["auto", "speed", "memory"],
        Field(
            description="What a worker does for memory: `auto` offloads the weights of a model that does not fit, "
            "`memory` those of every model, `speed` none. Keys of the model file come first."
        ),
    ] = "auto"
    deterministic: Annotated[
        bool,
        Field(
            description="Run all jobs as with `deterministic: true`: images do not depend on other jobs, to the bit."
        ),
    ] = False
    lease_s: Annotated[
        int,
        Field(ge=2, le=3600, description="Seconds without a heartbeat before the jobs of a worker are requeued."),
    ] = 20
    metrics_port: Annotated[
        int | None, Field(ge=1, le=65535, description="Port of the Prometheus metrics. Unset: metrics are not served.")
    ] = None
    stall_s: Annotated[
        float,
        Field(gt=0, description="Seconds that a forward pass may take before the worker exits."),
    ] = 900.0
    live_file: Annotated[
        Path | None, Field(description="File that is touched at each heartbeat, for health checks.")
    ] = None
    log_level: Annotated[str, StringConstraints(to_upper=True)] = "INFO"

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        if "," in device or device.endswith(":all"):
            raise ValueError("a worker runs on one device; `img2img serve` starts a worker for each of several")
        return device
