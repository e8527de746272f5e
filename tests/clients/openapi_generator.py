"""Submit an image and save the result, with a client of openapi-generator. Arguments: URL, input, output."""

import sys
from base64 import b64encode
from pathlib import Path

from img2img_client import ApiClient, Configuration, Img2ImgRequest, JobsApi, JobStatus

url, path, output = sys.argv[1:]
with ApiClient(Configuration(host=url)) as client:
    jobs = JobsApi(client)
    image = b64encode(Path(path).read_bytes()).decode()
    job = jobs.submit_img2img(Img2ImgRequest(image=image, prompt="a pencil sketch", strength=0.6))
    while job.status in (JobStatus.QUEUED, JobStatus.RUNNING):
        job = jobs.get_job(job.id, wait=30)
    Path(output).write_bytes(jobs.get_result(job.id))
print(job.id)
