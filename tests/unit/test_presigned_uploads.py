"""Presigned uploads: their ids, and their URLs compared with botocore."""

import time
from hashlib import sha256

import pytest

from img2img.blobs import ObjectStore, UnusableStore
from img2img.domain.blob_keys import presigned_upload, upload_key
from img2img.domain.presigned_upload import PresignedUpload
from img2img.presigned_uploads import SignedPut, UploadSigner
from tests.support.buckets import bucket_at
from tests.support.signatures import is_signed

DIGEST = sha256(b"image").hexdigest()


@pytest.mark.parametrize("size", [None, (1600, 1200)])
def test_id_holds_what_was_declared(size: tuple[int, int] | None) -> None:
    upload = PresignedUpload.new(DIGEST, 524288, size, now=1_700_000_000.5)
    assert upload.expires_at == 1_700_000_900
    assert PresignedUpload.parse(upload.id) == upload
    assert presigned_upload(upload_key(upload.id)) == upload
    assert PresignedUpload.new(DIGEST, 524288, size, now=1_700_000_000.5) != upload, "ids cannot be guessed"
    assert PresignedUpload.parse(upload.id + "0" * 9) is None
    assert presigned_upload(upload_key(DIGEST)) is None


@pytest.mark.parametrize("token", [None, "session/token+=="])
@pytest.mark.parametrize("url", ["s3://images/a%20folder/x", "s3://images"])
def test_signature_is_that_of_botocore(monkeypatch: pytest.MonkeyPatch, token: str | None, url: str) -> None:
    for name, value in bucket_at("http://127.0.0.1:9").environment.items():
        monkeypatch.setenv(name, value)
    if token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    signer, now = UploadSigner(ObjectStore(url)), time.time()
    put = signer.sign(upload_key("a-b"), DIGEST, 5, "image/png", now=now, expires_at=now + 900)
    sent = {name.lower(): value for name, value in put.headers.items()}
    sent |= {"host": "127.0.0.1:9", "content-length": "5", "user-agent": "x"}
    assert is_signed("PUT", put.url, sent, token)
    for name in set(sent) - {"user-agent"}:
        assert not is_signed("PUT", put.url, sent | {name: "6"}, token), name
        assert not is_signed("PUT", put.url, {key: value for key, value in sent.items() if key != name}, token), name
    old = signer.sign(upload_key("a-b"), DIGEST, 5, "image/png", now=now - 1000, expires_at=now - 100)
    assert not is_signed("PUT", old.url, sent, token), "it has expired"
    other = SignedPut(put.url.replace("a-b", "a-c"), put.headers)
    assert not is_signed("PUT", other.url, sent, token)


def test_store_without_signed_uploads_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    with pytest.raises(UnusableStore, match="not in an S3 bucket"):
        UploadSigner(ObjectStore(f"file://{tmp_path}"))
    for name, value in bucket_at("http://127.0.0.1:9").environment.items():
        monkeypatch.setenv(name, value)
    store = ObjectStore("s3://images")
    # As with credentials that the library has got elsewhere.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    with pytest.raises(UnusableStore, match="AWS_SECRET_ACCESS_KEY"):
        UploadSigner(store)
