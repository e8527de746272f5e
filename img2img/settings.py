"""Settings that the API server, the workers and the webhook dispatcher share. Each process reads them once."""

import difflib
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from img2img.model_sources import parse_folders
from img2img.telemetry.logging import LogFormat

# Docker and Kubernetes mount secrets here, as files named img2img_redis_url and so on.
SECRETS = Path("/run/secrets")
PREFIX = "IMG2IMG_"
# Settings whose values contain secrets, also invalid ones.
_NOT_SHOWN = frozenset(("cells", "moderation_key", "moderation_url", "webhook_secret"))
# Key of the names of the variables among the values.
NAMES = "_names"

# The settings of all processes, without the prefix. One `.env` configures all of them, so each process knows all names.
SETTINGS = (
    "ALLOWED_HOSTS",
    "ALLOW_TF32",
    "AOF_REWRITE_INTERVAL",
    "API_KEY",
    "API_METRICS_PORT",
    "BODY_TIMEOUT",
    "CELLS",
    "COMPILE",
    "CORS_ORIGINS",
    "CUDNN_BENCHMARK",
    "DATA_DIR",
    "DETERMINISTIC",
    "DEVICE",
    "DTYPE",
    "DURABILITY",
    "HOST",
    "INSECURE",
    "KEYS",
    "LEASE_S",
    "LIVE_FILE",
    "LOG_FORMAT",
    "LOG_LEVEL",
    "MAX_BODY_BYTES",
    "MAX_CONNECTIONS",
    "MAX_INFLIGHT_BYTES",
    "MAX_LOADED_MODELS",
    "MAX_PIXELS",
    "MAX_QUEUED",
    "MAX_QUEUED_PER_KEY",
    "MAX_ROWS",
    "MAX_STORED_BYTES",
    "MAX_STORED_BYTES_PER_KEY",
    "METRICS_HOST",
    "METRICS_PORT",
    "MIN_FREE_DISK",
    "MODE",
    "MODEL",
    "MODELS_FILE",
    "MODEL_FOLDERS",
    "MODEL_MEMORY",
    "MODERATION_CHECKS",
    "MODERATION_FAIL_OPEN",
    "MODERATION_KEY",
    "MODERATION_TIMEOUT_S",
    "MODERATION_URL",
    "PLAYGROUND",
    "PNG_METADATA",
    "PORT",
    "PRELOAD",
    "PUBLISHED_HOST",
    "RATE_LIMIT",
    "REDIS_URL",
    "RESULT_REDIRECT",
    "RESULT_TTL",
    "REVISION",
    "SERVE",
    "SLOTS",
    "STALL_S",
    "STORE_URL",
    "URL",
    "WEBHOOK_ALLOW_PRIVATE",
    "WEBHOOK_SECRET",
    "WEBHOOK_TIMEOUT_S",
)


def check_names(names: Iterable[str], place: str) -> None:
    """Raise ValueError for a name that begins with `IMG2IMG_` and is no setting, in any case.

    Args:
        names: Names of variables.
        place: Where they are set, for the message.
    """
    for name in map(str.upper, names):
        setting = name.removeprefix(PREFIX)
        if setting == name or setting in SETTINGS:
            continue
        nearest = difflib.get_close_matches(setting, SETTINGS, n=1)
        hint = f"did you mean {PREFIX}{nearest[0]}?" if nearest else ".env.example lists all settings"
        raise ValueError(f"{name} in {place} is not a setting; {hint}")


def check_moderation_url(url: str | None) -> str | None:
    """Return the URL, None for an empty one. Raises ValueError if nothing can be posted to it."""
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it should be a URL with http or https, such as http://moderation:8080/v1/moderations")
    if parts.username is not None or parts.password is not None:
        raise ValueError("it should have no user name and password; set IMG2IMG_MODERATION_KEY to a bearer token")
    return url


def check_moderation_key(key: str) -> str:
    """Return the key. Raises ValueError if it cannot be sent in a header."""
    if not key.isascii() or not key.isprintable() or key != key.strip():
        raise ValueError("it should be printable ASCII without spaces around it")
    return key


def check_moderated(names: str) -> str:
    """Return the names. Raises ValueError for an unknown one."""
    known = {"prompt", "input", "result"}
    if not names.strip() or not set(_names_in(names)) <= known:
        raise ValueError("it should list some of: prompt, input, result")
    return names


def _names_in(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


class _Names(PydanticBaseSettingsSource):
    """Adds the names of the variables to the values, for `SharedSettings._check_names`."""

    def __init__(self, settings: type[BaseSettings], sources: dict[str, PydanticBaseSettingsSource]) -> None:
        super().__init__(settings)
        self._sources = sources

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        """Return no value for any field."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the names by place."""
        sources = self._sources.items()
        return {NAMES: {place: list(src.env_vars) for place, src in sources if isinstance(src, EnvSettingsSource)}}


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
    model_folders: Annotated[
        str | None,
        Field(
            description="Folders from which models may be loaded that requests add, separated by commas; the first one "
            "is that of relative paths. Unset: the folder of the model file, if there is one; else none."
        ),
    ] = None
    device: Annotated[
        str,
        Field(
            description="`cpu`, `cuda`, `cuda:1`, `xpu`, `mps`, ..., or `auto`: the GPU if there is one. "
            "`img2img serve` runs a worker for each device of a list, such as `cuda:0,cuda:1`, and for each GPU with "
            "`cuda:all`."
        ),
    ] = "auto"
    redis_url: Annotated[
        str | None,
        Field(description="Redis server of the queue. Default: the embedded one that `img2img serve` starts."),
    ] = None
    store_url: Annotated[
        str | None, Field(description="Blob store for images, such as s3://bucket/prefix. Default: the data directory.")
    ] = None

    max_body_bytes: Annotated[int, Field(ge=1024, description="Largest request body in bytes.")] = 32 * 1024 * 1024
    max_pixels: Annotated[int, Field(ge=1, description="Largest image in pixels; up to 25 bytes of memory each.")] = (
        50_000_000
    )

    moderation_url: Annotated[
        str | None,
        AfterValidator(check_moderation_url),
        Field(description="Endpoint in the format of OpenAI's moderation API that prompts and images are sent to."),
    ] = None
    moderation_key: Annotated[
        str,
        AfterValidator(check_moderation_key),
        Field(repr=False, description="Bearer token for the moderation endpoint."),
    ] = ""
    moderation_checks: Annotated[
        str,
        AfterValidator(check_moderated),
        Field(description="Subjects of moderation, separated by commas: prompt, input (images), result."),
    ] = "prompt,result"
    moderation_timeout_s: Annotated[
        float, Field(gt=0, le=300, description="Timeout in seconds of an attempt to reach the moderation endpoint.")
    ] = 10.0
    moderation_fail_open: Annotated[
        bool, Field(description="Accept and deliver content that the moderation endpoint gives no verdict on.")
    ] = False

    @property
    def moderated(self) -> frozenset[Literal["prompt", "input", "result"]]:
        """The subjects in `moderation_checks`."""
        return frozenset(_names_in(self.moderation_checks))  # type: ignore[arg-type]

    log_format: Annotated[LogFormat, Field(description="Text, or one JSON object per line.")] = "text"
    metrics_host: Annotated[str, Field(description="Address of the metrics ports.")] = "127.0.0.1"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, and one that has the names of the variables."""
        names = _Names(settings_cls, {"the environment": env_settings, ".env": dotenv_settings})
        return init_settings, env_settings, dotenv_settings, file_secret_settings, names

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, values: dict[str, Any]) -> dict[str, Any]:
        for place, names in values.pop(NAMES, {}).items():
            check_names(names, place)
        return values

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_model(cls, values: dict[str, Any]) -> dict[str, Any]:
        return values if values.get("model") else {name: value for name, value in values.items() if name != "model"}

    @model_validator(mode="after")
    def _default_model_from_file(self) -> Self:
        """Make the first model of the model file the default, unless `model` is set."""
        if self.models_file and self.model_of_file:
            # Not as a field that was set, so that a child process follows the file, too.
            self.__dict__["model"] = first_model(self.models_file)
        return self

    @property
    def model_of_file(self) -> bool:
        """Whether the default model is the first one of the model file, and follows it."""
        return self.models_file is not None and "model" not in self.model_fields_set

    @property
    def resolved_model_folders(self) -> tuple[Path, ...]:
        """The folders from which models may be loaded that requests add."""
        if self.model_folders is not None:
            return parse_folders(self.model_folders)
        return (self.models_file.absolute().parent,) if self.models_file else ()

    @property
    def resolved_redis_url(self) -> str:
        """URL of the configured Redis server, or of the embedded one's unix socket."""
        return self.redis_url or f"unix://{embedded_redis_socket(self.data_dir)}"

    @property
    def resolved_store_url(self) -> str:
        """URL of the configured blob store, or of a folder in the data directory."""
        return self.store_url or (self.data_dir.resolve() / "store").as_uri()


def first_model(file: Path) -> str:
    """Return the name of the first model in a model file. Raises ValueError."""
    try:
        models = tomllib.loads(file.read_text()).get("models")
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the model file {file}: {error}") from None
    if not models or not isinstance(models, dict):
        raise ValueError(f"the model file {file} has no table [models.<name>]")
    return str(next(iter(models)))


def embedded_redis_socket(data_dir: Path) -> Path:
    """Return the unix socket of the embedded Redis server, which `img2img serve` starts."""
    return data_dir.resolve() / "redis.sock"


def describe_errors(error: ValidationError) -> str:
    """Return the errors in one line that contains no secret."""
    return "; ".join(map(_describe_error, error.errors()))


def _describe_error(error: ErrorDetails) -> str:
    # An error without a location concerns several settings.
    if not error["loc"]:
        return error["msg"].removeprefix("Value error, ")
    name = f"{PREFIX}{'_'.join(map(str, error['loc'])).upper()}"
    got = "" if _NOT_SHOWN.intersection(error["loc"]) else f", got {error['input']!r}"
    return f"{name}: {error['msg'].removeprefix('Value error, ')}{got}"


def without_password(url: str) -> str:
    """Return a URL with its passwords replaced by asterisks."""
    # Not by `urlsplit`, which refuses several hosts if one is an IPv6 address.
    address, mark, query = re.sub(r"(?<=://)[^/?#]*:[^/?#]+@", "***@", url).partition("?")
    return address + mark + re.sub(r"(password=)[^&#]*", r"\1***", query)
