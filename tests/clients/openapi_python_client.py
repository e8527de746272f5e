"""Submit an image and save the result, with a client of openapi-python-client. Arguments: URL, input, output."""

import os
import sys
from pathlib import Path
from typing import TypeVar

from img2img_client import AuthenticatedClient
from img2img_client.api.jobs import get_job, get_result, submit_img2img
from img2img_client.models import Img2ImgForm, JobStatus, Problem
from img2img_client.types import File

Result = TypeVar("Result")


def checked(result: Result | Problem | None) -> Result:
    """Return the result of a call, or exit with the reason of an error."""
    if isinstance(result, Problem):
        sys.exit(f"{result.code}: {result.detail}")
    assert result is not None
    return result


url, path, output = sys.argv[1:]
# Without an API key on the service any text will do.
key = os.environ.get("IMG2IMG_API_KEY", "none")
service = AuthenticatedClient(base_url=url, token=key, timeout=60, raise_on_unexpected_status=True)
with service as client, Path(path).open("rb") as file:
    form = Img2ImgForm(image=File(payload=file, file_name="image"), prompt="a pencil sketch", strength=0.6)
    job = checked(submit_img2img.sync(client=client, body=form))
    while job.status in (JobStatus.QUEUED, JobStatus.RUNNING):
        job = checked(get_job.sync(job.id, client=client, wait=30))
    Path(output).write_bytes(checked(get_result.sync(job.id, client=client)).payload.read())
print(job.id)
