"""URLs to which a client can send one image of known size and content, for a limited time (AWS Signature Version 4).

obstore signs URLs, but no headers. The signature here covers the headers that make the bucket refuse anything else:
another length, type or content, and a second image in place of the first one.
"""

import hmac
import os
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from urllib.parse import parse_qs, quote, urlsplit

from img2img.blobs import ObjectStore, UnusableStore

ALGORITHM = "AWS4-HMAC-SHA256"
KEY_ID, SECRET = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"


@dataclass(frozen=True)
class SignedPut:
    """A request that a client may make: `PUT url` with these headers, besides `Content-Length`."""

    url: str
    headers: Mapping[str, str]


class UploadSigner:
    """Signs uploads to a bucket.

    Args:
        store: The blob store.

    Raises:
        UnusableStore: The store is no S3 bucket, or its secret is not in the environment.
    """

    def __init__(self, store: ObjectStore) -> None:
        if not store.is_s3:
            raise UnusableStore("its images are not in an S3 bucket")
        # For the address of the bucket, its region and the session token. Signing needs no request.
        probe = urlsplit(store.sign("GET", "uploads/probe", 60))
        query = {name: values[0] for name, values in parse_qs(probe.query).items()}
        key_id, _, region, service, _ = query["X-Amz-Credential"].split("/")
        self._secret = os.environ.get(SECRET, "")
        if key_id != os.environ.get(KEY_ID) or not self._secret:
            raise UnusableStore(f"its credentials of the bucket are not those in {KEY_ID} and {SECRET}")
        self._key_id, self._region, self._service = key_id, region, service
        self._token = query.get("X-Amz-Security-Token")
        self._origin, self._host = f"{probe.scheme}://{probe.netloc}", probe.netloc
        self._prefix = probe.path.removesuffix("uploads/probe")

    def sign(self, key: str, digest: str, size: int, content_type: str, *, now: float, expires_at: float) -> SignedPut:
        """Return a request that stores one image under a key, once, until a time.

        Args:
            digest: SHA-256 of the image, in hexadecimal.
            size: Its bytes.
            now: The time of Redis, in seconds since the epoch.
        """
        headers = {
            "Content-Type": content_type,
            "If-None-Match": "*",
            "x-amz-checksum-sha256": b64encode(bytes.fromhex(digest)).decode(),
        }
        signed = {name.lower(): value for name, value in headers.items()}
        signed |= {"content-length": str(size), "host": self._host}
        signed_at = datetime.fromtimestamp(now, UTC)
        time, scope = f"{signed_at:%Y%m%dT%H%M%SZ}", f"{signed_at:%Y%m%d}/{self._region}/{self._service}/aws4_request"
        names = ";".join(sorted(signed))
        query = {
            "X-Amz-Algorithm": ALGORITHM,
            "X-Amz-Credential": f"{self._key_id}/{scope}",
            "X-Amz-Date": time,
            "X-Amz-Expires": str(int(expires_at - now)),
            "X-Amz-SignedHeaders": names,
        }
        if self._token:
            query["X-Amz-Security-Token"] = self._token
        path = self._prefix + quote(key)
        query_text = "&".join(f"{name}={quote(value, safe='')}" for name, value in sorted(query.items()))
        header_lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
        request = f"PUT\n{path}\n{query_text}\n{header_lines}\n{names}\nUNSIGNED-PAYLOAD"
        text = f"{ALGORITHM}\n{time}\n{scope}\n{sha256(request.encode()).hexdigest()}"
        signature = hmac.new(self._signing_key(scope), text.encode(), sha256).hexdigest()
        return SignedPut(f"{self._origin}{path}?{query_text}&X-Amz-Signature={signature}", headers)

    def _signing_key(self, scope: str) -> bytes:
        key = f"AWS4{self._secret}".encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), sha256).digest()
        return key
