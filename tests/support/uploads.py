"""Uploaded images whose time is over."""

from redis import Redis

from img2img.redis.keys import INPUT_IMAGES, UPLOAD_OWNERS


def expire_upload(redis: Redis, blob_key: str) -> None:
    """Let the time of an upload be over for all of its owners."""
    owners = UPLOAD_OWNERS.format(key=blob_key)
    redis.zadd(owners, dict.fromkeys(redis.zrange(owners, 0, -1), 1))
    redis.zadd(INPUT_IMAGES, {blob_key: 1})
