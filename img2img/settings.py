"""Settings that the API server, the workers and the webhook dispatcher share. Each process reads them once."""

import tomllib
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from img2img.telemetry.logging import LogFormat

# Docker and Kubernetes mount secrets here, as files named img2img_redis_url and so on.
SECRETS = Path("/run/secrets")


class SharedSettings(BaseSettings):
    """Settings from `IMG2IMG_*` variables of the environment, then from `.env`, then from secret files."""

    model_config = SettingsConfigDict(
        env_prefix="IMG2IMG_",
        env_file=".env",
        secrets_dir=SECRETS if SECRETS.is_dir() else None,
        extra="ignore",
        frozen=True,
    )

    data_dir: Annotated[
        Path, Field(description="Folder for the files of the embedded Redis and of the local blob store.")
    ] = Path("data")
    model: Annotated[
        str, Field(description="Model to serve and default model of requests: `demo`, a diffusers folder or a hub id.")
    ] = "demo"
    models_file: Annotated[
        Path | None,
        Field(description="A models.toml file with the models to serve. Its first model is the default of requests."),
    ] = None
    redis_url: Annotated[
        str | None,
        Field(description="Redis server of the queue. Default: the embedded one that `img2img serve` starts."),
    ] = None
    store_url: Annotated[
        str | None, Field(description="Blob store for images, such as s3://bucket/prefix. Default: the data directory.")
    ] = None

    log_format: Annotated[LogFormat, Field(description="Text, or one JSON object per line.")] = "text"
    metrics_host: Annotated[str, Field(description="Address of the metrics ports.")] = "127.0.0.1"

    @model_validator(mode="before")
    @classmethod
    def _default_model_from_file(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Make the first model of the model file the default, unless `model` is set."""
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
        """URL of the configured Redis server, or of the embedded one's unix socket."""
        return self.redis_url or f"unix://{embedded_redis_socket(self.data_dir)}"

    @property
    def resolved_store_url(self) -> str:
        """URL of the configured blob store, or of a folder in the data directory."""
        return self.store_url or (self.data_dir.resolve() / "store").as_uri()


def embedded_redis_socket(data_dir: Path) -> Path:
    """Return the unix socket of the embedded Redis server, which `img2img serve` starts."""
    return data_dir.resolve() / "redis.sock"


def without_password(url: str) -> str:
    """Return a URL with its password replaced by asterisks."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"***@{parts.netloc.rpartition('@')[2]}").geturl() if parts.password else url
