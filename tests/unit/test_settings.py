"""Names of settings: every process knows all of them and refuses others."""

import re

import pytest
from pydantic import ValidationError

from img2img.app.settings import ApiSettings
from img2img.settings import PREFIX, SETTINGS, SharedSettings, check_names, describe_errors
from img2img.worker.settings import WorkerSettings
from tests.support.pages import page

# Options of the client commands, which read no other settings.
CLIENT = {"URL", "API_KEY"}


def test_known_names_are_those_of_all_processes() -> None:
    fields = {name.upper() for settings in (ApiSettings, WorkerSettings) for name in settings.model_fields}
    assert set(SETTINGS) == fields | CLIENT


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("IMG2IMG_PROT", "did you mean IMG2IMG_PORT?"),
        ("img2img_modell", "did you mean IMG2IMG_MODEL?"),
        ("IMG2IMG_MODELS", "did you mean IMG2IMG_MODEL"),
        ("IMG2IMG_WEBHOOKS_SECRET", "did you mean IMG2IMG_WEBHOOK_SECRET?"),
        ("IMG2IMG_MAX_ROW", "did you mean IMG2IMG_MAX_ROWS?"),
        ("IMG2IMG_ZZZ", ".env.example lists all settings"),
        ("IMG2IMG_", ".env.example lists all settings"),
    ],
)
def test_unknown_name_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match="is not a setting") as caught:
        check_names([name], "the environment")
    assert str(caught.value).startswith(f"{name.upper()} in the environment is not a setting; {hint}")


def test_known_and_foreign_names_are_accepted() -> None:
    check_names([*(PREFIX + name for name in SETTINGS), "img2img_port", "PATH", "IMG2IMGX_PROT", "MY_IMG2IMG_PROT"], "")


@pytest.mark.parametrize("settings", [SharedSettings, ApiSettings, WorkerSettings])
def test_every_process_refuses_a_misspelt_variable(
    settings: type[SharedSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMG2IMG_DEVISE", "cpu")
    with pytest.raises(ValidationError, match="IMG2IMG_DEVISE in the environment is not a setting"):
        settings(_env_file=None)


@pytest.mark.parametrize("file", ["docker-compose.yml", "docker-compose.gpu.yml", ".env.example"])
def test_containers_and_the_example_use_only_known_names(file: str) -> None:
    check_names(re.findall(r"IMG2IMG_[A-Z0-9_]+", page(file)), file)


@pytest.mark.parametrize(
    ("name", "value"),
    [("moderation_key", "hunter2\n"), ("moderation_url", "https://user:hunter2@moderation.example/v1/moderations")],
)
@pytest.mark.parametrize("settings", [ApiSettings, WorkerSettings])
def test_invalid_secret_of_moderation_is_not_shown(settings: type[SharedSettings], name: str, value: str) -> None:
    with pytest.raises(ValidationError) as error:
        settings(_env_file=None, **{name: value})  # type: ignore[call-arg, arg-type]
    message = describe_errors(error.value)
    assert message.startswith(f"IMG2IMG_{name.upper()}: ")
    assert "hunter2" not in message
