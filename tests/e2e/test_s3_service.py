"""The whole service with an S3 bucket as its blob store."""

import time
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from PIL import Image
from redis import Redis

from img2img.blobs import ObjectStore
from img2img.client import Client, InvalidResponse, ServerError
from img2img.domain.blob_keys import input_key, result_key
from img2img.redis.keys import EXPIRING_JOBS
from img2img.settings import embedded_redis_socket
from tests.support.buckets import Bucket, s3_server
from tests.support.damage import flip_bit
from tests.support.images import encoded, gradient
from tests.support.processes import wait_for
from tests.support.serving import serving


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with s3_server() as bucket:
        yield bucket


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="i2i-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def client(bucket: Bucket, folder: Path, model_folder: Path) -> Iterator[httpx.Client]:
    with serving(folder, model_folder, **bucket.settings, IMG2IMG_RESULT_REDIRECT="true") as client:
        yield client


@pytest.fixture(scope="module")
def store(bucket: Bucket) -> ObjectStore:
    return ObjectStore(bucket.url)


def make(client: httpx.Client, seed: int) -> dict[str, str]:
    """Run a job, and return it after it has succeeded."""
    files = {"image": encoded(gradient(64, 64, blue=seed))}
    response = client.post("/img2img", files=files, data={"num_inference_steps": "2", "seed": str(seed)})
    assert response.status_code == 202, response.text
    job = wait_for(lambda: _ended(client, response.json()["id"]), timeout_s=120)
    assert job["status"] == "succeeded", job
    return job


def _ended(client: httpx.Client, job_id: str) -> dict[str, str] | None:
    job = client.get(f"/jobs/{job_id}").json()
    return job if job["status"] not in ("queued", "running") else None


def test_bucket_stores_a_job_from_submit_to_delete(
    client: httpx.Client, bucket: Bucket, folder: Path, store: ObjectStore
) -> None:
    job = make(client, seed=1)
    job_id, result = job["id"], f"/jobs/{job['id']}/result"
    digest = job["images"][0]["sha256"]  # type: ignore[index]
    redirect = client.get(result)
    assert (redirect.status_code, redirect.headers["cache-control"], redirect.content) == (307, "no-store", b"")
    # The security policy of the page at `/` permits no other origin.
    assert client.get(result, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200
    url = redirect.headers["location"]
    assert url.startswith(f"{bucket.endpoint}/images/img2img/{result_key(job_id, 0)}?")
    assert "X-Amz-Expires=60&" in url
    # The signed URL needs no credentials.
    png = httpx.get(url, trust_env=False)
    assert png.headers["content-type"] == "image/png"
    assert sha256(png.content).hexdigest() == digest
    assert store.get(result_key(job_id, 0)) == png.content
    assert not (folder / "store").exists()

    head = client.head(result, follow_redirects=True)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(png.content)))
    with Client(str(client.base_url)) as sdk:
        assert sdk.download(job_id) == png.content
    assert client.get(result, headers={"If-None-Match": f'"{digest}"'}).status_code == 304
    unchanged = client.get(result, headers={"If-None-Match": png.headers["etag"]}, follow_redirects=True)
    assert (unchanged.status_code, unchanged.content) == (304, b"")

    # The API server converts the image, because the bucket has only the PNG.
    converted = client.get(f"{result}?format=webp")
    assert converted.status_code == 200
    assert Image.open(BytesIO(converted.content)).format == "WEBP"
    assert client.post("/img2img?dry_run=true", json={"image": result}).status_code == 200

    assert client.delete(f"/jobs/{job_id}").status_code == 204
    assert client.get(result).status_code == 410
    assert httpx.get(url, trust_env=False).status_code == 404
    assert store.get(result_key(job_id, 0)) is None


def test_damaged_image_in_a_bucket_is_found(client: httpx.Client, store: ObjectStore) -> None:
    job_id = make(client, seed=3)["id"]
    png = store.get(result_key(job_id, 0)) or b""
    store.replace(result_key(job_id, 0), flip_bit(png, len(png) // 2))
    # The client compares what it has downloaded from the bucket with the job.
    with Client(str(client.base_url)) as sdk:
        job = sdk.get_job(job_id)
        for image in (job, job.images[0]):
            with pytest.raises(InvalidResponse, match="damaged"):
                sdk.download(image)
        with pytest.raises(ServerError, match="damaged or missing"):
            sdk.download(job, format="webp")
        store.delete(result_key(job_id, 0))
        with pytest.raises(ServerError, match="damaged or missing"):
            sdk.download(job, format="webp")


def test_expired_blobs_are_deleted_from_the_bucket(client: httpx.Client, folder: Path, store: ObjectStore) -> None:
    job = make(client, seed=2)
    result, input_image = result_key(job["id"], 0), input_key(job["request"]["image"])  # type: ignore[index]
    assert store.get(result)
    assert store.get(input_image)
    with Redis.from_url(f"unix://{embedded_redis_socket(folder)}") as redis:
        redis.zadd(EXPIRING_JOBS, {job["id"]: time.time()})
    wait_for(lambda: store.get(result) is None and store.get(input_image) is None, timeout_s=60)
    assert client.get(f"/jobs/{job['id']}").status_code == 410
