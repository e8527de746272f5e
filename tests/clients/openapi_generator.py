"""Sends a picture and saves the result, by a client from openapi-generator. Arguments: URL, picture, output."""

import sys
from base64 import b64encode
from pathlib import Path

from img2img_client import ApiClient, Configuration, Img2ImgRequest, JobsApi, JobStatus

url, picture, output = sys.argv[1:]
with ApiClient(Configuration(host=url)) as client:
    jobs = JobsApi(client)
    image = b64encode(Path(picture).read_bytes()).decode()
    job = jobs.submit_img2img(Img2ImgRequest(image=image, prompt="a pencil sketch", strength=0.6))
    while job.status in (JobStatus.QUEUED, JobStatus.RUNNING):
        job = jobs.get_job(job.id, wait=30)
    Path(output).write_bytes(jobs.get_result(job.id))
print(job.id)
