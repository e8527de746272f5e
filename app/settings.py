"""Settings of the HTTP side. Read once, in the command line; a bad value refuses to start."""

import base64
import binascii
import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal

import limits
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo, field_validator

from img2img.domain.job import RESULT_TTL_S
from img2img.settings import SharedSettings

ORIGIN = re.compile(r"https?://[^/\s,]+")
SECONDS_OF = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


def seconds(value: object) -> object:
    """`24h` as seconds; what has no unit as it is."""
    if isinstance(value, str) and value[-1:] in SECONDS_OF:
        try:
            return float(value[:-1]) * SECONDS_OF[value[-1]]
        except ValueError:
            return value
    return value


def rate(text: str | None) -> str | None:
    """Refuses what is no rate."""
    if text:
        try:
            limits.parse(text)
        except ValueError:
            raise ValueError("Input should be a rate such as 2000/minute or 500 per 10 minutes") from None
    return text


def origins(text: str) -> str:
    """Refuses what a browser would never send as its origin."""
    for origin in text.split(",") if text else ():
        if origin.strip() != "*" and not ORIGIN.fullmatch(origin.strip()):
            raise ValueError("Input should be origins such as https://studio.example, with commas between, or *")
    return text


SECRET_PREFIX = "whsec_"  # noqa: S105


def _secrets(text: str) -> str:
    """Checks the form that Standard Webhooks asks for. The message never says what it got."""
    for secret in text.split():
        try:
            size = len(base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True))
        except binascii.Error:
            size = 0
        if not secret.startswith(SECRET_PREFIX) or not 24 <= size <= 64:
            raise ValueError(f"each secret should be {SECRET_PREFIX} and the base64 of 24 to 64 random bytes")
    return text


def webhook_secret_file(data_dir: Path) -> Path:
    """Where `img2img serve` keeps the secret that it draws where none is set."""
    return data_dir / "webhook-secret"


def complaint(error: ValidationError) -> str:
    """What is wrong with the settings, in one line that gives no secret away."""
    return "; ".join(
        f"IMG2IMG_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}"
        + ("" if "webhook_secret" in e["loc"] else f", got {e['input']!r}")
        if e["loc"]
        else e["msg"].removeprefix("Value error, ")  # of several settings together
        for e in error.errors()
    )


class ApiSettings(SharedSettings):
    """`IMG2IMG_*` for the front end."""

    host: Annotated[str, Field(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535, description="Port to listen on.")] = 8000
    published_host: Annotated[
        str | None,
        Field(description="Where clients reach the service, if that is not `host`: a container's port is published."),
    ] = None
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"],
        BeforeValidator(lambda level: str(level).upper()),
        Field(description="`info` also logs every request."),
    ] = "WARNING"
    api_metrics_port: Annotated[
        int | None, Field(ge=1, le=65535, description="A port with /metrics alone, which asks for no key; unset: none.")
    ] = None
    max_body_bytes: Annotated[int, Field(ge=1024, description="Largest request body.")] = 32 * 1024 * 1024
    max_pixels: Annotated[int, Field(ge=1, description="Largest picture; decoding can take 25 bytes a pixel.")] = (
        50_000_000
    )
    result_ttl: Annotated[
        float,
        BeforeValidator(seconds),
        Field(gt=0, description="How long a job and its pictures are kept after its end: 24h, 30m, 7d or seconds."),
    ] = RESULT_TTL_S
    result_redirect: Annotated[
        bool, Field(description="Answer for a PNG with a redirect to where the bucket serves it, by a signed URL.")
    ] = False
    slots: Annotated[int | None, Field(ge=1, description="Jobs in flight in the worker that `serve` starts.")] = None
    webhook_secret: Annotated[
        str,
        AfterValidator(_secrets),
        Field(repr=False, description="Signs webhooks: whsec_ and base64. Several, with spaces between, all sign."),
    ] = ""
    webhook_allow_private: Annotated[
        bool, Field(description="Webhooks may also lead to private addresses, and by plain http.")
    ] = False
    webhook_timeout_s: Annotated[
        float, Field(gt=0, le=60, description="Seconds that an attempt to deliver a webhook may take.")
    ] = 15.0

    @property
    def webhook_secrets(self) -> tuple[str, ...]:
        """What signs webhooks: as configured, else what `img2img serve` has drawn; none where neither is there."""
        if self.webhook_secret:
            return tuple(self.webhook_secret.split())
        try:
            return tuple(webhook_secret_file(self.data_dir).read_text().split())
        except FileNotFoundError:
            return ()

    keys: Annotated[
        Literal["auto", "required"],
        Field(description="Whether requests need an API key; auto: unless only this machine can reach the service."),
    ] = "auto"
    insecure: Annotated[bool, Field(description="Let everyone in who can reach the service, without a key.")] = False
    rate_limit: Annotated[
        str | None,
        AfterValidator(rate),
        Field(description="Megapixel-steps that a key may have made, e.g. 2000/minute; unset: any."),
    ] = None
    max_queued_per_key: Annotated[int | None, Field(ge=1, description="Jobs of a key that may wait; unset: any.")] = (
        None
    )
    max_queued: Annotated[int | None, Field(ge=1, description="Jobs that may wait in all; unset: any.")] = None
    cors_origins: Annotated[
        str,
        AfterValidator(origins),
        Field(description="Origins whose pages browsers let use the service, with commas between; * is any."),
    ] = ""
    body_timeout: Annotated[
        float,
        BeforeValidator(seconds),
        Field(gt=0, description="How long a request body may take to arrive, e.g. 2m."),
    ] = 120.0

    @field_validator("insecure")
    @classmethod
    def _know_whom_to_let_in(cls, insecure: bool, info: ValidationInfo) -> bool:
        if insecure and info.data.get("keys") == "required":
            raise ValueError("IMG2IMG_KEYS=required says the contrary")
        return insecure

    @property
    def keys_required(self) -> bool:
        """Whether a request needs an API key."""
        return self.keys == "required" or not (self.insecure or is_loopback(self.published_host or self.host))

    @property
    def allowed_origins(self) -> list[str]:
        """What `cors_origins` names, one by one."""
        return [origin.strip() for origin in self.cors_origins.split(",") if origin.strip()]

    @property
    def local_url(self) -> str:
        """Where this machine reaches the service."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def as_environment(self) -> dict[str, str]:
        """The environment in which a child process reads these same settings."""
        given = self.model_dump(exclude_unset=True, exclude_none=True)
        return {**os.environ, **{f"IMG2IMG_{name.upper()}": str(value) for name, value in given.items()}}


def is_loopback(host: str) -> bool:
    """Whether what listens on this host is reached from this machine only. A name that may mean anything is not."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
