"""Parameters that several routes share."""

from typing import Annotated

from fastapi import Path

JobId = Annotated[str, Path(description="The `id` of the job.")]
