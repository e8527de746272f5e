"""Causes and remedies of all error codes."""

from typing import NamedTuple


class Cause(NamedTuple):
    """Why a code is sent, and how a caller or an operator gets on. In Markdown, only with inline code."""

    cause: str
    remedy: str
    is_of_jobs: bool = False


CAUSES = {
    "bad_request": Cause(
        "The request cannot be parsed, its body ends early (a form: before the closing boundary), or the JSON body has "
        "too many values or is not UTF-8.",
        "Compare the request with the operation at `/docs`; let an HTTP library build the form.",
    ),
    "missing_api_key": Cause(
        "The service needs an API key, and the request has none.",
        "Send `Authorization: Bearer i2i_...` or `X-API-Key`. The operator creates keys with "
        "`img2img keys create --name NAME`.",
    ),
    "invalid_api_key": Cause(
        "The API key does not exist, or was revoked.",
        "Check that all of the key was copied; `img2img keys list` shows the keys that exist.",
    ),
    "expired_api_key": Cause(
        "The API key has expired.",
        "Let the operator create another one, or rotate keys before they expire with `img2img keys rotate`.",
    ),
    "insufficient_scope": Cause(
        "The API key does not have the scope that the request needs, which `detail` names.",
        "Use a key that was created with `--scope` and that name.",
    ),
    "forbidden_host": Cause(
        "The service runs without API keys, and is addressed by a name that is not in `IMG2IMG_ALLOWED_HOSTS`.",
        "Use `127.0.0.1` or `localhost`, or add the name to `IMG2IMG_ALLOWED_HOSTS`.",
    ),
    "forbidden_origin": Cause(
        "The service runs without API keys, and a web page of an origin that is not in `IMG2IMG_CORS_ORIGINS` sent the "
        "request.",
        "Add the origin of the page, such as `https://app.example.com`, to `IMG2IMG_CORS_ORIGINS`.",
    ),
    "not_found": Cause(
        "The job, the image, the model or the path does not exist, or belongs to another API key.",
        "Check the id, and that it was made with the same key. Jobs that have expired are 410 for a day, and then 404.",
    ),
    "method_not_allowed": Cause(
        "The path does not support this method.",
        "Use a method of the header `Allow`.",
    ),
    "request_timeout": Cause(
        "The request body did not arrive within `IMG2IMG_BODY_TIMEOUT`.",
        "Send smaller images, or raise the setting for slow connections.",
    ),
    "not_ready": Cause(
        "The job has not ended, so it has no result yet.",
        "Request `GET /jobs/{id}?wait=30` until `status` is `succeeded`.",
    ),
    "gone": Cause(
        "The job failed or was cancelled, so this result will never exist.",
        "Read `error` of `GET /jobs/{id}`, and submit the job again.",
    ),
    "flagged": Cause(
        "The prompt or an image of the request was flagged by moderation (422; `categories` has its reasons), or the "
        "result was flagged by the safety checker or moderation and is withheld (410, and jobs without another image).",
        "Change the prompt, the image or the seed. Operators set `safety_checker` of the model to `report` to deliver "
        "flagged results with a mark.",
        is_of_jobs=True,
    ),
    "expired": Cause(
        "The job and its images were deleted `IMG2IMG_RESULT_TTL` (24 hours) after its end.",
        "Submit it again; download results earlier, or raise the setting.",
    ),
    "deleted": Cause(
        "The job was deleted by `DELETE /jobs/{id}` or `img2img forget`.",
        "Submit it again if it is still needed.",
    ),
    "no_presigned_uploads": Cause(
        "Images of this service are in no bucket for which it can sign URLs.",
        "Send the image with the request, or to `POST /images`. Operators set `IMG2IMG_STORE_URL` to an S3 bucket, "
        "with `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.",
    ),
    "payload_too_large": Cause(
        "The request body is larger than `IMG2IMG_MAX_BODY_BYTES`.",
        "Send a smaller image, as a form instead of base64, or upload images with `POST /images` first.",
    ),
    "unsupported_media_type": Cause(
        "The image is not PNG, JPEG or WebP, or the body is neither a form nor JSON, or is compressed.",
        "Convert the image (HEIC, AVIF, GIF, BMP and TIFF are not read); leave out `Content-Encoding`.",
    ),
    "invalid_image": Cause(
        "The image is damaged, animated, larger than `IMG2IMG_MAX_PIXELS`, or has too many chunks or segments.",
        "Save it again with an image editor, or reduce it.",
    ),
    "invalid_parameter": Cause(
        "A field has an invalid value, is unknown, or is not supported by the task or the model; or the body is not "
        "valid JSON.",
        "`errors` names each field, the value that was received, and the values that are accepted. `GET /models` lists "
        "the fields of each model; `?dry_run=true` checks a request without creating a job.",
    ),
    "idempotency_key_reused": Cause(
        "The `Idempotency-Key` was sent with a different request within 24 hours.",
        "Use a new key for a new request. A repeated request must have the same bytes of images and the same fields.",
    ),
    "deadline_unmet": Cause(
        "With `deadline_policy: reject`: the job would end after its deadline, in about `eta_s` seconds.",
        "Request fewer steps or pixels, a later deadline, or try again when the queue is shorter.",
    ),
    "job_too_expensive": Cause(
        "The job, or decoding an image, costs more than `IMG2IMG_RATE_LIMIT` ever allows.",
        "Request fewer steps, images or pixels; `?dry_run=true` returns the cost.",
    ),
    "rate_limited": Cause(
        "The API key has used its work for now, by jobs or by images to decode.",
        "Wait for the seconds of `Retry-After`; `RateLimit` and `RateLimit-Policy` have the balance.",
    ),
    "too_many_models": Cause(
        "Requests have changed 1,000 models.",
        "Reset models with `POST /models/{name}/reset`, and put those that stay into the model file.",
    ),
    "too_many_queued": Cause(
        "The API key has `IMG2IMG_MAX_QUEUED_PER_KEY` waiting jobs.",
        "Wait until some have ended, or cancel some.",
    ),
    "headers_too_large": Cause(
        "The request has more than 64 KB of headers, or more than 128 of them.",
        "Send fewer headers; usually these are cookies of another service of the same host.",
    ),
    "internal_error": Cause(
        "The API server met an unexpected error.",
        "Report it with the `X-Request-ID` of the response, which is in the log of the server beside the traceback.",
    ),
    "result_damaged": Cause(
        "The stored image is damaged or missing, and cannot be restored.",
        "Submit the job again with its seed; it makes the same image. Operators check the blob store.",
    ),
    "overloaded": Cause(
        "The server has `IMG2IMG_MAX_CONNECTIONS` connections, or its requests in progress hold "
        "`IMG2IMG_MAX_INFLIGHT_BYTES`.",
        "Try again after `Retry-After`; run more API servers.",
    ),
    "unavailable": Cause(
        "Redis, the blob store or the model is not available.",
        "Try again after `Retry-After`. `GET /readyz` shows which part is not ready.",
    ),
    "not_confirmed": Cause(
        "Redis did not confirm in time that the change is durable (`IMG2IMG_DURABILITY`). It may take effect "
        "nevertheless.",
        "Repeat the request, a submit with the same `Idempotency-Key`.",
    ),
    "queue_full": Cause(
        "The queue has `IMG2IMG_MAX_QUEUED` jobs.",
        "Try again after `Retry-After`; add workers, or raise the setting.",
    ),
    "unreadable_job": Cause(
        "A later version of the service has written the job, and this server cannot read it.",
        "Try again: another server may read it. It ends with the upgrade of the last server.",
    ),
    "moderation_unavailable": Cause(
        "The moderation endpoint gave no verdict: on a request at once, on results for a minute or so.",
        "Try again after `Retry-After`. Operators check `IMG2IMG_MODERATION_URL`.",
        is_of_jobs=True,
    ),
    "decoders_busy": Cause(
        "Too many images are waiting to be decoded, of this API key or in total.",
        "Try again after `Retry-After`, with fewer uploads at the same time.",
    ),
    "storage_full": Cause(
        "The disk is full, or stored images have reached `IMG2IMG_MAX_STORED_BYTES`.",
        "Try again when images have expired; delete jobs, lower `IMG2IMG_RESULT_TTL`, or enlarge the store.",
    ),
    "storage_quota_exceeded": Cause(
        "The images of the API key have reached `IMG2IMG_MAX_STORED_BYTES_PER_KEY`; `used` and `limit` are bytes.",
        "Delete jobs or uploads, or wait until `frees_at`.",
    ),
    "job_failed": Cause(
        "The pipeline failed; `message` has the reason.",
        "Change the request as the reason asks. The log of the worker has the traceback.",
        is_of_jobs=True,
    ),
    "invalid_pixels": Cause(
        "The model produced values that are not numbers.",
        "Try another seed or scheduler; operators set `dtype` of the model to `bfloat16` or `float32`.",
        is_of_jobs=True,
    ),
    "input_missing": Cause(
        "The image was not sent to the URL of its upload.",
        "Create another upload with `POST /uploads`, send the image, and submit the job again.",
        is_of_jobs=True,
    ),
    "input_damaged": Cause(
        "An input image is damaged or missing in the blob store.",
        "Submit the job again with the image.",
        is_of_jobs=True,
    ),
    "storage_unavailable": Cause(
        "The blob store did not respond to the worker for a minute.",
        "Submit the job again when `GET /readyz` shows the store as ready.",
        is_of_jobs=True,
    ),
    "model_unavailable": Cause(
        "No live worker can load the model; `message` has the reason.",
        "`GET /models/{name}` shows the state of the model on each worker. Correct its definition, or choose another.",
        is_of_jobs=True,
    ),
    "worker_lost": Cause(
        "The worker was lost three times while it ran this job, so the job may be the reason.",
        "Request fewer pixels or images: the usual reason is memory. The log of the worker has its last lines.",
        is_of_jobs=True,
    ),
    "deadline_exceeded": Cause(
        "The job was cancelled at its deadline (`status` is `cancelled`).",
        "Set a later `deadline_s`, or `deadline_policy: best_effort`.",
        is_of_jobs=True,
    ),
    "unreadable": Cause(
        "The worker cannot read the record of the job, which another version has written.",
        "Upgrade all processes to one version, and submit the job again.",
        is_of_jobs=True,
    ),
}
