"""Settings of the API server and the webhook dispatcher. Read once at startup; an invalid value stops the start."""

import base64
import binascii
import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal

import limits
from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from img2img.domain.cells import parse_cells
from img2img.domain.job import RESULT_TTL_S
from img2img.free_disk import parse_reserve
from img2img.redis.durability import Durability
from img2img.settings import SharedSettings

HOST_NAME = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)
ORIGIN = re.compile(r"https?://[^/\s,]+")
# Default quota, and default number of queued jobs, of an API key.
STORED_BYTES_PER_KEY = 10 * 1024**3
MAX_QUEUED_PER_KEY = 10_000
SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}


def parse_duration(value: object) -> object:
    """Return a duration such as `24h` in seconds, and any other value unchanged."""
    if isinstance(value, str) and value[-1:] in SECONDS_PER_UNIT:
        try:
            return float(value[:-1]) * SECONDS_PER_UNIT[value[-1]]
        except ValueError:
            return value
    return value


def check_rate(text: str | None) -> str | None:
    """Return `text` if it is a rate. Raises ValueError."""
    if text:
        try:
            limits.parse(text)
        except ValueError:
            raise ValueError("Input should be a rate such as 2000/minute or 500 per 10 minutes") from None
    return text


def check_reserve(text: str) -> str:
    """Return `text` if it is a percentage or a number of bytes. Raises ValueError."""
    parse_reserve(text)
    return text


def check_cells(text: str) -> str:
    """Return `text` if it names cells. Raises ValueError."""
    parse_cells(text)
    return text


def check_origins(text: str) -> str:
    """Return `text` if it lists origins as browsers send them, or `*`. Raises ValueError."""
    for origin in text.split(",") if text else ():
        if origin.strip() != "*" and not ORIGIN.fullmatch(origin.strip()):
            raise ValueError("Input should be origins such as https://studio.example, with commas between, or *")
    return text


def check_host_names(text: str) -> str:
    """Return `text` if it lists host names or IPv4 addresses. Raises ValueError."""
    for name in filter(None, map(str.strip, text.split(","))):
        if not HOST_NAME.fullmatch(name):
            raise ValueError("Input should be host names without ports, such as studio.local, with commas between")
    return text


SECRET_PREFIX = "whsec_"  # noqa: S105


def check_secrets(text: str) -> str:
    """Return `text` if it lists secrets as Standard Webhooks defines them. Raises ValueError, without the secret."""
    for secret in text.split():
        try:
            size = len(base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True))
        except binascii.Error:
            size = 0
        if not secret.startswith(SECRET_PREFIX) or not 24 <= size <= 64:
            raise ValueError(f"each secret should be {SECRET_PREFIX} and the base64 of 24 to 64 random bytes")
    return text


def webhook_secret_file(data_dir: Path) -> Path:
    """Return the path of the secret that `img2img serve` generates if none is configured."""
    return data_dir / "webhook-secret"


class ApiSettings(SharedSettings):
    """Settings `IMG2IMG_*` of the API server and the webhook dispatcher."""

    host: Annotated[str, Field(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535, description="Port to listen on.")] = 8000
    published_host: Annotated[
        str | None,
        Field(description="Host that clients connect to, if not `host`: e.g. for a published container port."),
    ] = None
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"],
        BeforeValidator(lambda level: str(level).upper()),
        Field(description="Minimum level of log messages; `info` logs every request."),
    ] = "WARNING"
    api_metrics_port: Annotated[
        int | None, Field(ge=1, le=65535, description="Port for /metrics only, without API key; unset: none.")
    ] = None
    max_inflight_bytes: Annotated[
        int | None,
        Field(
            ge=1024 * 1024,
            description="Bytes that all requests together may hold; half of them per API key. Default: a quarter of "
            "the memory, at most 512 MiB.",
        ),
    ] = None
    max_connections: Annotated[
        int, Field(ge=1, description="Open connections; further ones get 503. Health checks are always served.")
    ] = 1000
    result_ttl: Annotated[
        float,
        BeforeValidator(parse_duration),
        Field(gt=0, description="How long a job and its images are kept after it ends: 24h, 30m, 7d or seconds."),
    ] = RESULT_TTL_S
    aof_rewrite_interval: Annotated[
        float,
        BeforeValidator(parse_duration),
        Field(gt=0, description="Least time between two rewrites of Redis' append-only file after deletions, e.g. 1h."),
    ] = 3600.0
    result_redirect: Annotated[bool, Field(description="Redirect downloads of PNGs to a signed URL of the bucket.")] = (
        False
    )
    playground: Annotated[bool, Field(description="Serve the web page at `/`.")] = True
    slots: Annotated[int | None, Field(ge=1, description="Jobs in flight in the worker that `serve` starts.")] = None
    dtype: Annotated[str | None, Field(description="Number format of the models that `serve` loads.")] = None
    compile: Annotated[str | None, Field(description="How models that `serve` loads are compiled.")] = None
    webhook_secret: Annotated[
        str,
        AfterValidator(check_secrets),
        Field(
            repr=False,
            description="Secrets that sign webhooks (whsec_ and base64), separated by spaces.",
        ),
    ] = ""
    webhook_allow_private: Annotated[
        bool, Field(description="Allow webhooks to private addresses and over plain http.")
    ] = False
    webhook_timeout_s: Annotated[
        float, Field(gt=0, le=60, description="Timeout in seconds of an attempt to deliver a webhook.")
    ] = 15.0

    @property
    def webhook_secrets(self) -> tuple[str, ...]:
        """The configured secrets, else the one that `img2img serve` has generated, else none."""
        if self.webhook_secret:
            return tuple(self.webhook_secret.split())
        try:
            return tuple(webhook_secret_file(self.data_dir).read_text().split())
        except FileNotFoundError:
            return ()

    durability: Annotated[
        Durability,
        Field(
            description="When a submit, cancellation or deletion is acknowledged: `everysec`: Redis has it in memory; "
            "`always`: it is on disk; `replica`: a replica has it too."
        ),
    ] = Durability.EVERYSEC
    keys: Annotated[
        Literal["auto", "required"],
        Field(description="Whether requests need an API key; `auto`: unless the service listens on loopback only."),
    ] = "auto"
    insecure: Annotated[bool, Field(description="Accept requests without an API key from any client.")] = False
    rate_limit: Annotated[
        str | None,
        AfterValidator(check_rate),
        Field(description="Megapixel-steps that an API key may submit in a period, e.g. 2000/minute; unset: no limit."),
    ] = None
    cells: Annotated[
        str,
        AfterValidator(check_cells),
        Field(
            repr=False,
            description="Cells of the service as name=URL of their Redis, separated by spaces, for an API server in "
            "front of several ones. Each API key belongs to one cell.",
        ),
    ] = ""
    max_queued_per_key: Annotated[
        int | None,
        Field(ge=1, description="Queued jobs per API key; unset: 10,000 where keys are required, else no limit."),
    ] = None
    max_queued: Annotated[int | None, Field(ge=1, description="Queued jobs in total; unset: no limit.")] = None
    max_stored_bytes_per_key: Annotated[
        int | None,
        Field(ge=1, description="Bytes of input images per API key; unset: 10 GiB if keys are required."),
    ] = None
    max_stored_bytes: Annotated[
        int | None, Field(ge=1, description="Bytes of input images in total; unset: no limit.")
    ] = None
    min_free_disk: Annotated[
        str,
        AfterValidator(check_reserve),
        Field(description="Part of the disk that input images leave free, as a percentage or bytes."),
    ] = "5%"
    cors_origins: Annotated[
        str,
        AfterValidator(check_origins),
        Field(description="Origins of web pages that may use the service (CORS), separated by commas; * allows all."),
    ] = ""
    allowed_hosts: Annotated[
        str,
        AfterValidator(check_host_names),
        Field(
            description="Names besides localhost by which clients address a service on loopback without API keys "
            "(header `Host`), separated by commas."
        ),
    ] = ""
    body_timeout: Annotated[
        float,
        BeforeValidator(parse_duration),
        Field(gt=0, description="Time for a request body to arrive, e.g. 2m."),
    ] = 120.0

    @field_validator("insecure")
    @classmethod
    def _check_insecure(cls, insecure: bool, info: ValidationInfo) -> bool:
        if insecure and info.data.get("keys") == "required":
            raise ValueError("it contradicts IMG2IMG_KEYS=required; unset one of them")
        return insecure

    def by_cell(self) -> "dict[str, ApiSettings]":
        """Return the settings of each cell by its name; these alone, with an empty name, if there are no cells."""
        if not self.cells:
            return {"": self}
        store = self.resolved_store_url.rstrip("/")
        return {
            name: self.model_copy(update={"redis_url": url, "store_url": f"{store}/{name}", "cells": ""})
            for name, url in parse_cells(self.cells).items()
        }

    @property
    def keys_required(self) -> bool:
        """Whether a request needs an API key."""
        return self.keys == "required" or not (self.insecure or is_loopback(self.published_host or self.host))

    @property
    def stored_bytes_per_owner(self) -> int | None:
        """Bytes of input images that one owner may store. Without API keys, all clients are one owner."""
        return self.max_stored_bytes_per_key or (STORED_BYTES_PER_KEY if self.keys_required else None)

    @property
    def resolved_max_queued_per_key(self) -> int | None:
        """The configured limit, else a default for services with API keys. None: no limit."""
        return self.max_queued_per_key or (MAX_QUEUED_PER_KEY if self.keys_required else None)

    @property
    def allowed_origins(self) -> list[str]:
        """The origins in `cors_origins`."""
        return [origin.strip() for origin in self.cors_origins.split(",") if origin.strip()]

    @property
    def is_only_for_this_machine(self) -> bool:
        """Whether the service listens on loopback and requires no API keys."""
        return not self.keys_required and is_loopback(self.published_host or self.host)

    @property
    def accepted_hosts(self) -> frozenset[str] | None:
        """The names in `allowed_hosts`; None if all are accepted, because the service is not only for this machine."""
        if not self.is_only_for_this_machine:
            return None
        return frozenset(name.strip().lower() for name in self.allowed_hosts.split(",") if name.strip())

    @property
    def local_url(self) -> str:
        """URL of the service on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def as_environment(self) -> dict[str, str]:
        """Return an environment from which a child process reads these settings."""
        given = self.model_dump(exclude_unset=True, exclude_none=True)
        return {**os.environ, **{f"IMG2IMG_{name.upper()}": str(value) for name, value in given.items()}}


def is_loopback(host: str) -> bool:
    """Whether `host` is a loopback address, or `localhost`. Other names may resolve to any address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
