"""Submit an image and save the result, with a client of openapi-python-client. Arguments: URL, input, output."""

import sys
from pathlib import Path

from img2img_client import Client
from img2img_client.api.jobs import get_job, get_result, submit_img2img
from img2img_client.models import Img2ImgForm, JobStatus
from img2img_client.types import File

url, path, output = sys.argv[1:]
with Client(base_url=url, timeout=60, raise_on_unexpected_status=True) as client, Path(path).open("rb") as file:
    form = Img2ImgForm(image=File(payload=file, file_name="image"), prompt="a pencil sketch", strength=0.6)
    job = submit_img2img.sync(client=client, body=form)
    while job.status in (JobStatus.QUEUED, JobStatus.RUNNING):
        job = get_job.sync(job.id, client=client, wait=30)
    Path(output).write_bytes(get_result.sync(job.id, client=client).payload.read())
print(job.id)
