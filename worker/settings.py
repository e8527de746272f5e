"""Settings of the worker, read from `IMG2IMG_*` variables."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ByteSize, Field, StringConstraints, field_validator, model_validator

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
        Field(description="Run all jobs as with `deterministic: true`: no image depends on other jobs, to the bit."),
    ] = False
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        Field(description="Number format of models that set no `dtype`. Unset: by device and family."),
    ] = None
    compile: Annotated[
        Literal["off", "regional", "full"],
        Field(description="How the denoiser of models that set no `compile` is compiled."),
    ] = "off"
    allow_tf32: Annotated[
        bool | None,
        Field(
            description="Whether float32 on CUDA has 10 bits of mantissa (TF32): faster, with other pixels. Unset: as "
            "PyTorch does, in convolutions only."
        ),
    ] = None
    cudnn_benchmark: Annotated[
        bool,
        Field(
            description="Let cuDNN choose the convolutions of each shape by measurements. Images can then differ after "
            "a restart; not with `IMG2IMG_DETERMINISTIC`."
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

    @property
    def model_defaults(self) -> dict[str, str]:
        """Values of keys that a model does not set."""
        return {"compile": self.compile} | ({"dtype": self.dtype} if self.dtype else {})

    @model_validator(mode="after")
    def _check_deterministic(self) -> Self:
        if self.deterministic and self.cudnn_benchmark:
            raise ValueError(
                "IMG2IMG_CUDNN_BENCHMARK makes images depend on measurements of time; unset it or IMG2IMG_DETERMINISTIC"
            )
        return self

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        if "," in device or device.endswith(":all"):
            raise ValueError("a worker runs on one device; `img2img serve` starts a worker for each of several")
        return device
