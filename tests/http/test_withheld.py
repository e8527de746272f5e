"""Jobs of which some images were flagged and are not delivered."""

from collections.abc import Callable

import httpx
import pytest

from img2img.blobs import ObjectStore
from img2img.redis.job_queue import JobQueue
from tests.support.finished_jobs import succeed
from tests.support.problems import assert_problem

Submit = Callable[..., httpx.Response]


@pytest.fixture
def job_id(submit: Submit, queue: JobQueue, store: ObjectStore) -> str:
    """A succeeded job of three images, of which two are withheld."""
    job_id: str = submit(num_images=3).json()["id"]
    succeed(job_id, queue, store, withheld=(0, 2))
    return job_id


def test_job_lists_delivered_images_and_indices_of_withheld_ones(http: httpx.Client, job_id: str) -> None:
    job = http.get(f"/jobs/{job_id}").json()
    assert ([image["index"] for image in job["images"]], job["withheld"], job["status"]) == ([1], [0, 2], "succeeded")
    [image] = job["images"]
    assert (image["url"], image["flagged"]) == (f"/jobs/{job_id}/images/1", False)
    assert http.get("/jobs").json()["jobs"][0]["withheld"] == [0, 2]


def test_withheld_image_cannot_be_downloaded(http: httpx.Client, job_id: str) -> None:
    for index in (0, 2):
        problem = assert_problem(http.get(f"/jobs/{job_id}/images/{index}"), 410, "flagged")
        assert problem["detail"] == f"Image {index} of the job was flagged and is not delivered."
    assert_problem(http.get(f"/jobs/{job_id}/images/3"), 404, "not_found")
    delivered = http.get(f"/jobs/{job_id}/images/1")
    assert (delivered.status_code, http.get(f"/jobs/{job_id}/result").content) == (200, delivered.content)


def test_withheld_image_cannot_be_an_input(http: httpx.Client, job_id: str) -> None:
    refused = http.post("/img2img", json={"image": f"/jobs/{job_id}/images/0"})
    assert "was flagged" in assert_problem(refused, 422, "invalid_parameter")["detail"]
    assert http.post("/img2img", json={"image": f"/jobs/{job_id}/images/1"}).status_code == 202
