"""The settings that both sides share. Read once, at each side's composition root."""

import tomllib
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from img2img.telemetry.logging import LogFormat

SECRETS = Path("/run/secrets")  # where Docker and Kubernetes put them: a file named img2img_redis_url, and so on


class SharedSettings(BaseSettings):
    """`IMG2IMG_*` from the environment, then from `.env`, then from files of secrets."""

    model_config = SettingsConfigDict(
        env_prefix="IMG2IMG_",
        env_file=".env",
        secrets_dir=SECRETS if SECRETS.is_dir() else None,
        extra="ignore",
        frozen=True,
    )

    data_dir: Annotated[Path, Field(description="Files of the private Redis and of the local store.")] = Path("data")
    model: Annotated[
        str, Field(description="Model to serve and the default of requests: `demo`, a diffusers folder or a hub id.")
    ] = "demo"
    models_file: Annotated[
        Path | None,
        Field(description="A models.toml whose models are served; the default of requests is then the first in it."),
    ] = None
    redis_url: Annotated[
        str | None, Field(description="Redis of the queue; unset: the private one that `img2img serve` starts.")
    ] = None
    store_url: Annotated[
        str | None, Field(description="Where pictures are kept, e.g. s3://bucket/prefix; unset: the data directory.")
    ] = None

    log_format: Annotated[LogFormat, Field(description="Lines for people, or a JSON object a line.")] = "text"
    metrics_host: Annotated[str, Field(description="Address on which metrics have a port of their own.")] = "127.0.0.1"

    @model_validator(mode="before")
    @classmethod
    def _first_of_the_file(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Where a model file is given and no model, requests get the first of the file."""
        file = values.get("models_file")
        if not file or values.get("model"):
            return values
        try:
            models = tomllib.loads(Path(file).read_text()).get("models")
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read the model file {file}: {error}") from None
        if not models or not isinstance(models, dict):
            raise ValueError(f"the model file {file} has no table [models.<name>]")
        return {**values, "model": next(iter(models))}

    @property
    def resolved_redis_url(self) -> str:
        """The Redis to connect to: as configured, else the private server's unix socket in the data directory."""
        return self.redis_url or f"unix://{embedded_redis_socket(self.data_dir)}"

    @property
    def resolved_store_url(self) -> str:
        """The object store to use: as configured, else a folder in the data directory."""
        return self.store_url or (self.data_dir.resolve() / "store").as_uri()


def embedded_redis_socket(data_dir: Path) -> Path:
    """Unix socket of the redis-server that `img2img serve` starts."""
    return data_dir.resolve() / "redis.sock"


def without_password(url: str) -> str:
    """A Redis URL as it may be shown."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"***@{parts.netloc.rpartition('@')[2]}").geturl() if parts.password else url
