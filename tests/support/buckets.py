"""Buckets of a local S3 server, for tests."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import httpx

from img2img.app.supervisor.supervisor import free_port
from tests.support.signatures import KEY_ID, SECRET


@dataclass(frozen=True)
class Bucket:
    """A bucket of an S3 server.

    Attributes:
        url: value of IMG2IMG_STORE_URL.
        environment: the other environment variables that a process needs.
    """

    endpoint: str
    url: str = "s3://images/img2img"
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, str]:
        """All environment variables that a process needs."""
        return {**self.environment, "IMG2IMG_STORE_URL": self.url}


def bucket_at(endpoint: str) -> Bucket:
    """Return the bucket of a server."""
    environment = {
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }
    return Bucket(endpoint, environment=environment)


@contextmanager
def s3_server(kind: str = "SerializedRequests") -> Iterator[Bucket]:
    """Run a server with an empty bucket. While it runs, the AWS_ variables of this process refer to it."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tests.support.s3_server", "127.0.0.1", str(port), kind]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        make_bucket(endpoint, process)
        bucket = bucket_at(endpoint)
        with patch.dict(os.environ, bucket.environment):
            yield bucket
    finally:
        process.kill()
        process.wait()


def make_bucket(endpoint: str, process: "subprocess.Popen[bytes]", timeout_s: float = 60) -> None:
    """Create the bucket as soon as the server responds."""
    deadline = time.monotonic() + timeout_s
    with httpx.Client(trust_env=False) as http:
        while True:
            try:
                assert http.put(f"{endpoint}/images").status_code == 200
                return
            except httpx.TransportError:
                assert process.poll() is None, "the S3 server did not start"
                assert time.monotonic() < deadline, "the S3 server does not respond"
                time.sleep(0.1)
