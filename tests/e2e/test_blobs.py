"""Blob stores in memory, in a directory and in a bucket of an S3 server behave the same."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from obstore.exceptions import BaseError, GenericError

from img2img.app.supervisor.supervisor import free_port
from img2img.blobs import BlobStore, ObjectStore, UnusableStore
from img2img.worker.__main__ import open_store
from img2img.worker.errors import StartupError
from tests.support.buckets import KEY_ID, SECRET, Bucket, bucket_at, s3_server
from tests.support.cli_command import img2img, one_line
from tests.support.memory_store import MemoryStore


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with s3_server() as bucket:
        yield bucket


@pytest.fixture(params=["memory", "directory", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "memory":
        return MemoryStore()
    if request.param == "directory":
        return ObjectStore((tmp_path / "store").as_uri())
    return in_bucket(request.getfixturevalue("bucket"), request.node.name)


def in_bucket(bucket: Bucket, prefix: str) -> ObjectStore:
    return ObjectStore(f"{bucket.url}/{prefix}", retry_timeout_s=10)


def test_first_writer_wins(store: BlobStore) -> None:
    first, second = b"1" * 3_000_000, b"2"
    assert store.put("results/a/0.png", first)
    assert not store.put("results/a/0.png", second)
    assert store.get("results/a/0.png") == first


def test_one_concurrent_writer_wins(store: BlobStore) -> None:
    successful: list[bytes] = []
    barrier = threading.Barrier(6)

    def write(data: bytes) -> None:
        barrier.wait()
        if store.put("results/a/0.png", data):
            successful.append(data)

    threads = [threading.Thread(target=write, args=(bytes([n]) * 100_000,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(successful) == 1
    assert store.get("results/a/0.png") == successful[0]


def test_deleted_blob_can_be_written_again(store: BlobStore) -> None:
    store.put("inputs/a.png", b"a")
    store.put("inputs/b.png", b"b")
    store.put("inputs/c.png", b"c")
    store.delete("inputs/never.png", "inputs/a.png", "inputs/b.png")
    store.delete("inputs/a.png")
    found = [store.get(f"inputs/{name}.png") for name in ("a", "b", "c", "never")]
    assert found == [None, None, b"c", None]
    assert store.put("inputs/a.png", b"new")
    store.check()


def test_blobs_are_stored_under_the_prefix_of_the_url(bucket: Bucket) -> None:
    in_bucket(bucket, "here").put("a", b"1")
    assert in_bucket(bucket, "there").get("a") is None
    assert ObjectStore("s3://images").get("img2img/here/a") == b"1"


def test_bucket_gets_the_checksum_of_each_blob(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server("ComparesChecksums") as bucket:
        store = in_bucket(bucket, "checked")
        assert store.put("results/a/0.png", b"first")
        store.replace("results/a/0.png", b"second")
        assert store.get("results/a/0.png") == b"second"
        monkeypatch.setenv("AWS_CHECKSUM_ALGORITHM", "CRC64NVME")
        with pytest.raises(BaseError, match="BadDigest"):
            in_bucket(bucket, "another").put("results/a/0.png", b"first")


def test_missing_bucket_is_an_outage_and_not_a_missing_blob(bucket: Bucket) -> None:
    assert in_bucket(bucket, "there").get("missing") is None
    with pytest.raises(GenericError, match="does not exist"):
        ObjectStore("s3://no-such-bucket", retry_timeout_s=1).get("missing")


def test_missing_folder_is_an_outage_and_not_a_missing_blob(tmp_path: Path) -> None:
    store = ObjectStore((tmp_path / "store").as_uri())
    assert store.get("missing") is None
    (tmp_path / "store").rmdir()
    with pytest.raises(GenericError, match="does not exist"):
        store.get("missing")


def test_replace_overwrites_a_blob(store: BlobStore) -> None:
    store.replace("results/a/0.png", b"first")
    assert not store.put("results/a/0.png", b"second")
    store.replace("results/a/0.png", b"third")
    assert store.get("results/a/0.png") == b"third"


def test_signed_url_serves_a_png_and_has_the_signature_of_botocore(bucket: Bucket) -> None:
    store = in_bucket(bucket, "signed")
    store.put("results/a/0.png", b"an image")
    for method in ("GET", "HEAD"):
        url = store.sign(method, "results/a/0.png", 60)  # type: ignore[arg-type]
        response = httpx.request(method, url, trust_env=False)
        assert response.status_code == 200
        assert response.headers["content-type"] == "image/png"
        assert response.headers["cache-control"] == "private, max-age=31536000, immutable"
        query = parse_qs(urlsplit(url).query)
        assert query["X-Amz-Expires"] == ["60"]
        assert query["X-Amz-Signature"] == [botocore_signature(method, url)]


def botocore_signature(method: str, url: str) -> str:
    """Return the expected signature; the test server does not check any."""
    unsigned, _, _ = url.partition("&X-Amz-Signature=")
    request = AWSRequest(method, unsigned)
    request.context["timestamp"] = parse_qs(urlsplit(url).query)["X-Amz-Date"][0]
    request.context["payload_signing_enabled"] = False
    auth = S3SigV4QueryAuth(Credentials(KEY_ID, SECRET), "s3", "us-east-1")
    request.headers["host"] = urlsplit(url).netloc
    return auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)  # type: ignore[no-any-return]


def test_write_with_lost_response_happens_once() -> None:
    with s3_server("LosesResponses") as bucket:
        store = in_bucket(bucket, "lost")
        store.put("results/a/0.png", b"first")
        assert not store.put("results/a/0.png", b"second")
        assert store.get("results/a/0.png") == b"first"


def test_unreachable_bucket_raises_within_the_retry_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bucket_at(f"http://127.0.0.1:{free_port()}").environment.items():
        monkeypatch.setenv(name, value)
    store = ObjectStore("s3://images", retry_timeout_s=0.5)
    started = time.monotonic()
    for call in (lambda: store.put("a", b""), lambda: store.get("a"), store.check, store.check_first_writer_wins):
        with pytest.raises(GenericError):
            call()
    assert time.monotonic() - started < 60
    # The worker starts: the bucket may be reachable when the first job comes.
    open_store("s3://images")


def refusal(folder: Path, **settings: str) -> str:
    """Return the error message of an API server that does not start."""
    return one_line(img2img(folder, "api", IMG2IMG_PORT=str(free_port()), **settings))


def test_invalid_store_url_is_refused(tmp_path: Path) -> None:
    for url in ("s4://images", "s3://", "images"):
        with pytest.raises(UnusableStore, match=f"^IMG2IMG_STORE_URL={url}: .+$"):
            ObjectStore(url)
    line = refusal(tmp_path, IMG2IMG_STORE_URL="s4://images")
    assert line.startswith("img2img: IMG2IMG_STORE_URL=s4://images: ")


def test_store_without_conditional_writes_is_refused_at_start(bucket: Bucket, tmp_path: Path) -> None:
    with s3_server("IgnoresConditions") as forgetful:
        line = refusal(tmp_path, **forgetful.settings)
        assert "ignores `If-None-Match: *`" in line
        with pytest.raises(StartupError, match="ignores"):
            open_store(forgetful.url)
    line = refusal(tmp_path, **bucket.settings | {"IMG2IMG_STORE_URL": "s3://no-such-bucket"})
    assert "the store s3://no-such-bucket cannot be used" in line
    with pytest.raises(UnusableStore, match="cannot be used"):
        ObjectStore("s3://no-such-bucket").check_first_writer_wins()


def test_redirects_need_a_store_that_signs_urls(tmp_path: Path) -> None:
    line = refusal(tmp_path, IMG2IMG_RESULT_REDIRECT="true")
    assert "IMG2IMG_RESULT_REDIRECT=true needs a store that signs URLs" in line
    assert "s3://bucket/prefix" in line
