"""The least that a submit needs: an HTTP server that runs the Redis scripts of a submit, and nothing else.

    python -m benchmarks.limit_server PORT REDIS_URL

The same server software and the same scripts with arguments of the same size as in the service, in one pipeline per
request, on a thread. Requests are parsed as JSON and not checked, and all responses are the same.
"""

import json
import sys
from typing import Any
from uuid import uuid4

import uvicorn
from anyio.to_thread import run_sync
from redis import Redis

from benchmarks.api_server import SPEC
from img2img.domain.blob_keys import upload_key
from img2img.domain.job import JobOptions
from img2img.domain.presigned_upload import PresignedUpload
from img2img.redis.job_queue import JobQueue, _new_record
from img2img.redis.rq_adapter import RQFields, rq_queue

UPLOAD = PresignedUpload.new("0" * 64, 500_000, (640, 480), now=2e9)
# As long as those of the service.
CREATED = json.dumps({"image": UPLOAD.path, "url": "x" * 700, "headers": "x" * 150, "expires_at": "x" * 20}).encode()
SUBMITTED = json.dumps({"id": "x" * 32, "request": "x" * 1800}).encode()


class LimitServer:
    """An ASGI application."""

    def __init__(self, redis_url: str) -> None:
        self._redis = Redis.from_url(redis_url)
        self._queue = queue = JobQueue(self._redis)
        images = queue.input_images
        images.retain_upload(upload_key(UPLOAD.id), UPLOAD.bytes, 3600, "")
        generations = images.retain({upload_key(UPLOAD.id): UPLOAD.bytes}, "")
        spec = SPEC.model_copy(update={"upload": UPLOAD.id, "image": UPLOAD.sha256})
        record = _new_record("0" * 32, spec, JobOptions(), queue.clock.now())
        fields = RQFields.of(rq_queue(spec.model, self._redis), record.id)
        self._keys, self._args = queue._submit_arguments(record, None, generations, fields)
        queue.submit(spec, JobOptions(), generations)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if scope["path"] == "/uploads":
            json.loads(body)
            await run_sync(self._create)
            status, response = 201, CREATED
        elif scope["path"] == "/img2img":
            json.loads(body)
            await run_sync(self._submit)
            status, response = 202, SUBMITTED
        else:
            status, response = 200, b"{}"
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(response)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": response})

    def _create(self) -> None:
        images = self._queue.input_images
        args = [images._clock.now() + 3600, "", "", "", f"uploads/{uuid4().hex}", UPLOAD.bytes]
        with self._redis.pipeline(transaction=False) as pipe:
            images._retain_upload(args=args, client=pipe)
            pipe.execute()

    def _submit(self) -> None:
        images, job_id, key = self._queue.input_images, uuid4().hex, upload_key(UPLOAD.id)
        now = images._clock.now()
        names = [name.replace("0" * 32, job_id) for name in self._keys]
        args = [arg.replace("0" * 32, job_id, 2) if isinstance(arg, str) else arg for arg in self._args]
        with self._redis.pipeline(transaction=False) as pipe:
            images._renew(args=[now + 3600, now, "all", "", key], client=pipe)
            images._retain(args=[now + 3600, uuid4().hex, "", "", "", key, UPLOAD.bytes], client=pipe)
            self._queue._submit_script(keys=names, args=args, client=pipe)
            pipe.execute()


if __name__ == "__main__":
    uvicorn.run(LimitServer(sys.argv[2]), port=int(sys.argv[1]), log_level="warning")  # type: ignore[arg-type]
