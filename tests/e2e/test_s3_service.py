"""The whole service with an S3 bucket as its blob store."""

import json
import time
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from PIL import Image
from redis import Redis

from img2img.blobs import ObjectStore
from img2img.client import Client, InvalidResponse, ServerError
from img2img.domain.blob_keys import input_key, result_key, upload_key
from img2img.redis.keys import EXPIRING_JOBS
from img2img.settings import embedded_redis_socket
from tests.support.buckets import Bucket, s3_server
from tests.support.cli_command import img2img
from tests.support.damage import flip_bit
from tests.support.images import encoded, gradient
from tests.support.processes import wait_for
from tests.support.serving import serving


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with s3_server("ChecksSignatures") as bucket:
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


PARAMETERS = {"prompt": "a house", "num_inference_steps": 2, "seed": 7}


def declare(image: bytes, **changes: object) -> dict[str, object]:
    size = Image.open(BytesIO(image)).size
    declared = {"sha256": sha256(image).hexdigest(), "bytes": len(image), "content_type": "image/png"}
    return {**declared, "width": size[0], "height": size[1], **changes}


def create(client: httpx.Client, declared: dict[str, object]) -> dict[str, Any]:
    response = client.post("/uploads", json=declared)
    assert response.status_code == 201, response.text
    upload: dict[str, Any] = response.json()
    return upload


def put(upload: dict[str, Any], image: bytes, **headers: str) -> int:
    return httpx.put(
        upload["url"], content=image, headers={**upload["headers"], **headers}, trust_env=False
    ).status_code


def send(client: httpx.Client, image: bytes, **changes: object) -> str:
    upload = create(client, declare(image, **changes))
    assert put(upload, image) == 200
    return str(upload["image"])


def ended(client: httpx.Client, **fields: object) -> dict[str, Any]:
    response = client.post("/img2img", json={**PARAMETERS, **fields})
    assert response.status_code == 202, response.text
    return wait_for(lambda: _ended(client, response.json()["id"]), timeout_s=120)


def pixels(client: httpx.Client, job: dict[str, Any]) -> bytes:
    assert job["status"] == "succeeded", job["error"]
    return Image.open(BytesIO(client.get(f"/jobs/{job['id']}/result", follow_redirects=True).content)).tobytes()


@pytest.mark.parametrize("options", [{}, {"width": 64, "height": 128, "resize": "pad"}])
def test_image_that_is_sent_to_the_bucket_gives_the_same_result(
    client: httpx.Client, store: ObjectStore, options: dict[str, object]
) -> None:
    image = encoded(Image.effect_noise((200, 150), 80).convert("RGB"))
    direct = ended(client, image=b64encode(image).decode(), **options)
    created = client.post("/uploads", json=declare(image))
    assert put(created.json(), image) == 200
    sent = created.json()["image"]
    submitted = client.post("/img2img", json={**PARAMETERS, **options, "image": sent})
    followed = client.get(f"/jobs/{submitted.json()['id']}?wait=60")
    job = followed.json()
    result = client.get(f"/jobs/{job['id']}/result")
    assert result.status_code == 307
    through_api = sum(len(one.request.content + one.content) for one in (created, submitted, followed, result))
    assert len(image) > 10_000 > through_api
    assert pixels(client, job) == pixels(client, direct)
    assert job["request"]["image"] == sha256(image).hexdigest()
    assert job["request"]["upload"] == sent.removeprefix("/uploads/")
    # Without a declared size, and for other tasks, the API server reads the image from the bucket.
    undeclared = send(client, image, width=None, height=None)
    assert pixels(client, ended(client, image=undeclared, **options)) == pixels(client, direct)
    assert client.post("/img2img?dry_run=true", json={"image": undeclared, "mask": sent}).status_code == 200

    key = upload_key(sent.removeprefix("/uploads/"))
    assert client.delete(sent).status_code == 204
    assert client.delete(sent).status_code == 404
    assert client.post("/img2img", json={"image": sent, "width": 64, "height": 64}).status_code == 202, "of a job"
    assert store.get(key) == image, "jobs need it"


def test_bucket_takes_only_the_declared_image_and_once(client: httpx.Client) -> None:
    image = encoded(gradient(64, 64))
    upload = create(client, declare(image))
    assert put(upload, image[:-1] + b"x") == 400
    assert put(upload, image + b"x") == 403
    assert put(upload, image, **{"Content-Type": "text/html"}) == 403
    assert put(upload, image, **{"If-None-Match": "a"}) == 403
    assert put(upload, image) == 200
    assert put(upload, image) == 412
    assert httpx.get(upload["url"], trust_env=False).status_code == 403


def test_image_that_cannot_be_used_fails_the_job_as_it_fails_a_request(client: httpx.Client) -> None:
    good = encoded(gradient(64, 64))
    for bad in (good[:-40], b"GIF89a" + bytes(50), good[:60] + b"\0" * 40 + good[100:]):
        refused = client.post("/img2img", files={"image": bad})
        upload = create(client, {**declare(good), "sha256": sha256(bad).hexdigest(), "bytes": len(bad)})
        assert put(upload, bad) == 200
        job = ended(client, image=upload["image"])
        assert (job["status"], job["error"]["code"]) == ("failed", refused.json()["code"])
        assert job["error"]["message"] == refused.json()["detail"]
    wrong = ended(client, image=send(client, good, width=128, height=64))
    assert (wrong["status"], wrong["error"]["code"]) == ("failed", "invalid_image")
    assert "64 x 64 pixels, and the upload was declared to have 128 x 64" in wrong["error"]["message"]
    missing = ended(client, image=create(client, declare(good))["image"])
    assert (missing["status"], missing["error"]["code"]) == ("failed", "input_missing")


def test_upload_is_refused_by_the_limits_of_requests(client: httpx.Client) -> None:
    image = encoded(gradient(64, 64))
    assert client.post("/uploads", json=declare(image, bytes=99_999_999)).status_code == 413
    large = client.post("/uploads", json=declare(image, width=50_000, height=50_000))
    assert (large.status_code, large.json()["code"]) == (422, "invalid_image")
    assert client.post("/uploads", json=declare(image, height=None)).status_code == 422
    order = {"Idempotency-Key": "order-1"}
    first, again = (client.post("/uploads", json=declare(image), headers=order) for _ in range(2))
    assert first.json()["image"] == again.json()["image"]
    assert again.headers["idempotency-replayed"] == "true"
    assert client.post("/uploads", json=declare(image, bytes=5), headers=order).status_code == 422


def test_clients_send_images_to_the_bucket(client: httpx.Client, tmp_path: Path) -> None:
    image = encoded(gradient(120, 90, blue=3), "JPEG", exif=_sideways())
    with Client(str(client.base_url), presigned_uploads=True) as sdk:
        job = sdk.wait(sdk.submit(image=image, num_inference_steps=2, seed=1))
        assert "-90x120" in job.request["upload"], "the upright size"
        sent = sdk.download(job)
        upload = sdk.send_image(image)
        sdk.delete_image(upload)
    with Client(str(client.base_url)) as sdk:
        [direct] = sdk.generate(image=image, num_inference_steps=2, seed=1)
    assert Image.open(BytesIO(sent)).tobytes() == Image.open(BytesIO(direct)).tobytes()
    (tmp_path / "a.png").write_bytes(encoded(gradient(64, 64)))
    options = ("--presigned-uploads", "--steps", "1", "--no-wait", "--json", "--url", client.base_url)
    done = img2img(tmp_path, "submit", "a.png", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["request"]["upload"]


def _sideways() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif
