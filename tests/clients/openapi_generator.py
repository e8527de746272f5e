"""Sends a picture and saves the result, by a client from openapi-generator (python). Arguments: URL, picture, output."""

import sys
from pathlib import Path

from img2img_client import ApiClient, Configuration, JobsApi, JobStatus

url, picture, output = sys.argv[1:]
with ApiClient(Configuration(host=url)) as client:
    jobs = JobsApi(client)
    job = jobs.submit_img2img(
        image=Path(picture).read_bytes(),
        prompt="a pencil sketch",
        strength=0.6,
        _content_type="multipart/form-data",  # it would take JSON wherever a call can be JSON, and leave the form out
    )
    while job.status in (JobStatus.QUEUED, JobStatus.RUNNING):
        job = jobs.get_job(job.id, wait=30)
    Path(output).write_bytes(jobs.get_result(job.id))
print(job.id)
