"""The client of moderation endpoints, with a real endpoint that answers well or badly."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from img2img import moderation
from img2img.moderation import Moderator, NoVerdict, Verdict, moderator_for, request_body
from img2img.settings import SharedSettings
from tests.support.images import encoded
from tests.support.moderation_endpoints import Endpoint, moderation_endpoint

FORBIDDEN = request_body("a forbidden house")


@pytest.fixture(scope="module")
def running() -> Iterator[Endpoint]:
    with moderation_endpoint() as endpoint:
        yield endpoint


@pytest.fixture
def endpoint(running: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    running.reset()
    monkeypatch.setattr(moderation, "PAUSE_S", 0.01)
    return running


def ask(moderator: Moderator, body: bytes = FORBIDDEN, attempts: int = 2) -> Verdict:
    return asyncio.run(moderator.verdict(body, "prompt", attempts=attempts))


def test_verdict_has_the_flagged_categories(endpoint: Endpoint) -> None:
    moderator = Moderator(endpoint.url("ok"), key="sk-secret")
    assert ask(moderator) == Verdict(True, ("violence",))
    assert ask(moderator, request_body("a house", "blurry")) == Verdict(False)
    first, second = endpoint.requests()
    assert first["body"] == {"input": [{"type": "text", "text": "a forbidden house"}]}
    assert [part["text"] for part in second["body"]["input"]] == ["a house", "blurry"]
    headers = {name.lower(): value for name, value in first["headers"].items()}
    assert headers["authorization"] == "Bearer sk-secret"
    assert headers["content-type"] == "application/json"


def test_images_are_sent_as_data_uris(endpoint: Endpoint) -> None:
    moderator = Moderator(endpoint.url("ok"))
    assert ask(moderator, request_body(encoded(Image.new("RGB", (8, 8), "blue")))) == Verdict(False)
    assert ask(moderator, request_body(encoded(Image.new("RGB", (8, 8), "red")))) == Verdict(True, ("red",))
    request, _ = endpoint.requests()
    assert request["body"]["input"][0]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert "authorization" not in {name.lower() for name in request["headers"]}


def test_verdict_is_asked_for_again_after_an_error(endpoint: Endpoint) -> None:
    assert ask(Moderator(endpoint.url("flaky"))) == Verdict(True, ("violence",))
    assert len(endpoint.requests()) == 2


BAD = {
    "error": "status 500",
    "garbage": "the response is not JSON with `results` that have `flagged`",
    "no-results": "the response is not JSON with `results` that have `flagged`",
    "not-boolean": "the response is not JSON with `results` that have `flagged`",
    "nested": "the response is not JSON with `results` that have `flagged`",
    "silent": "no response within 0.3 s",
    "dripping": "no response within 0.3 s",
}
# Another attempt would not help.
FINAL = {
    "unauthorized": "status 401",
    "redirect": "status 307",
    "compressed": "the response is compressed",
    "huge": "the response is larger than 1048576 bytes",
}


@pytest.mark.parametrize(("behaviour", "reason"), (BAD | FINAL).items(), ids=BAD | FINAL)
def test_unusable_response_is_no_verdict(
    endpoint: Endpoint, behaviour: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    # A large response takes a moment.
    timeout_s = 0.3 if "0.3" in reason else 30
    moderator = Moderator(endpoint.url(behaviour), timeout_s=timeout_s, key="sk-secret")
    with pytest.raises(NoVerdict) as caught:
        ask(moderator)
    assert str(caught.value) == reason
    assert len(endpoint.requests()) == (1 if behaviour in FINAL else 2)
    assert all(request["path"] == behaviour for request in endpoint.requests())
    assert reason in caplog.text
    assert not {"forbidden", "sk-secret"} & set(caplog.text.split())


def test_content_passes_without_verdict_if_the_operator_wants_it(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    assert ask(Moderator(endpoint.url("error"), fail_open=True)) == Verdict(False)
    assert "it passes (IMG2IMG_MODERATION_FAIL_OPEN): status 500" in caplog.text


def test_endpoint_that_does_not_exist_is_no_verdict() -> None:
    started = time.monotonic()
    with pytest.raises(NoVerdict, match=r"^ConnectError: "):
        ask(Moderator("http://127.0.0.1:1/"), attempts=1)
    assert time.monotonic() - started < 10


def settings(**values: Any) -> SharedSettings:
    return SharedSettings(_env_file=None, **values)


def test_moderator_is_made_only_for_the_chosen_subjects() -> None:
    url = "http://moderation:8080/v1/moderations"
    assert moderator_for(settings(), "prompt") is None
    assert moderator_for(settings(moderation_url=""), "prompt") is None
    assert moderator_for(settings(moderation_url=url), "prompt") is not None
    assert moderator_for(settings(moderation_url=url), "input") is None
    assert moderator_for(settings(moderation_url=url, moderation_checks="input, result"), "input") is not None
    assert moderator_for(settings(moderation_url=url, moderation_checks="input, result"), "prompt") is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"moderation_url": "moderation:8080"}, "should be a URL with http or https"),
        ({"moderation_url": "https://user:pw@host/"}, "set IMG2IMG_MODERATION_KEY"),
        ({"moderation_key": "a\nb"}, "printable ASCII"),
        ({"moderation_checks": "prompts"}, "should list some of: prompt, input, result"),
        ({"moderation_checks": ""}, "should list some of: prompt, input, result"),
        ({"moderation_timeout_s": 0}, "greater than 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**values)
