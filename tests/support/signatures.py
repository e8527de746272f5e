"""Checks signed URLs as Amazon S3 does, with botocore's implementation of Signature Version 4."""

from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

# The credentials of the buckets of tests.
KEY_ID, SECRET = "AKIDEXAMPLE", "not-a-secret"


def is_signed(method: str, url: str, headers: Mapping[str, str], token: str | None = None) -> bool:
    """Return whether a request may be made now.

    Args:
        url: The signed URL.
        headers: The headers of the request, in lower case.
        token: The session token of the credentials.
    """
    parts = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    signed = query["X-Amz-SignedHeaders"].split(";")
    if not set(signed) <= set(headers):
        return False
    auth = S3SigV4QueryAuth(Credentials(KEY_ID, SECRET, token), "s3", "us-east-1")
    unsigned = parts.query.rpartition("&X-Amz-Signature=")[0]
    request = AWSRequest(method, f"{parts.scheme}://{parts.netloc}{parts.path}?{unsigned}")
    for name in signed:
        request.headers[name] = headers[name]
    request.context["timestamp"] = query["X-Amz-Date"]
    text = auth.string_to_sign(request, auth.canonical_request(request))
    signed_at = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    age_s = (datetime.now(UTC) - signed_at).total_seconds()
    return bool(auth.signature(text, request) == query["X-Amz-Signature"] and age_s < float(query["X-Amz-Expires"]))
