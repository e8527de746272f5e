"""What a worker can be told, by `IMG2IMG_*` variables. Read once, in `__main__`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from img2img.settings import SharedSettings


class WorkerSettings(SharedSettings):
    slots: Annotated[int, Field(ge=1, le=256, description="Pictures in flight at once.")] = 16
    max_rows: Annotated[
        int, Field(ge=2, le=1024, description="Rows of one forward pass; a picture with guidance is two.")
    ] = 64
    device: Annotated[str, Field(description="`cpu`, `cuda`, `cuda:1`, ...; auto: cuda where there is one.")] = "auto"
    revision: Annotated[str | None, Field(description="Revision of a model from the hub.")] = None
    serve: Annotated[
        str | None, Field(description="Names of the models to serve, comma separated; unset: all of the model file.")
    ] = None
    lease_s: Annotated[
        int, Field(ge=2, le=3600, description="Seconds that a worker may be silent before its jobs go to another one.")
    ] = 20
    metrics_port: Annotated[
        int | None, Field(ge=1, le=65535, description="Port for Prometheus to ask this worker; unset: none.")
    ] = None
    stall_s: Annotated[
        float, Field(gt=0, description="Seconds that a step may take before the worker ends, to be replaced.")
    ] = 900.0
    live_file: Annotated[
        Path | None, Field(description="A file that is touched as long as the worker lives, for health checks.")
    ] = None
    log_level: Annotated[str, StringConstraints(to_upper=True)] = "INFO"
