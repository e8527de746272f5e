"""Decisions of the webhook dispatcher without a network: addresses, delays, signatures, the settings behind them."""

import base64
import stat
import time
from email.utils import formatdate
from ipaddress import ip_address
from pathlib import Path

import pytest
from pydantic import ValidationError
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from img2img.app.settings import ApiSettings
from img2img.app.webhooks.dispatcher import MAX_IN_FLIGHT, delivery_after_attempt, owner_limit
from img2img.app.webhooks.host_timeouts import HostTimeouts
from img2img.app.webhooks.http_sender import DeliveryResponse
from img2img.app.webhooks.retry_policy import MAX_ATTEMPTS, parse_retry_after, retry_delay_s
from img2img.app.webhooks.signing import WebhookSigner, ensure_secret
from img2img.app.webhooks.ssrf_guard import check_webhook, is_public
from img2img.domain.webhook import DeliveryStatus, Webhook
from img2img.errors import ParameterError
from img2img.settings import describe_errors

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # from the example in the specification
OTHER_SECRET = "whsec_" + base64.b64encode(b"x" * 32).decode()


@pytest.mark.parametrize("address", ["1.1.1.1", "203.0.114.1", "2606:4700::1111", "2001:200::1", "64:ff9b::101:101"])
def test_public_addresses(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",  # metadata
        "127.0.0.1",
        "168.63.129.16",  # metadata
        "169.254.169.254",  # metadata
        "172.16.0.1",
        "192.0.0.8",
        "192.0.0.192",  # metadata
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",  # compatible
        "::ffff:127.0.0.1",  # mapped
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",  # NAT64 of 127.0.0.1
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2001::1",  # Teredo
        "2001:db8::1",
        "2002:7f00:1::",  # 6to4 of 127.0.0.1
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",  # metadata
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_non_public_addresses(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "https://127.0.0.1/",
        "https://127.1/",
        "https://2130706433/",
        "https://0177.0.0.1/",
        "https://0x7f.0.0.1/",
        "https://①②⑦.⓪.⓪.①/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://localhost/",
        "https://LOCALHOST.:8443/",
        "https://a.localhost/",
    ],
)
def test_non_public_url_is_rejected_at_submit(url: str) -> None:
    webhook = Webhook.model_validate({"url": url})
    with pytest.raises(ParameterError) as error:
        check_webhook(webhook, allow_private=False)
    assert error.value.field == "webhook.url"
    check_webhook(webhook, allow_private=True)


def test_possibly_public_url_is_accepted() -> None:
    for url in (
        "https://example.com/x?y=z",
        "https://example.com:8443/",
        "https://1.1.1.1/",
        "https://[2606:4700::1]/",
    ):
        check_webhook(Webhook.model_validate({"url": url}), allow_private=False)


def test_retry_delays_grow_to_a_day_and_end() -> None:
    delays = [retry_delay_s(attempt, None, 0.5) for attempt in range(1, MAX_ATTEMPTS + 1)]
    assert delays[:4] == [5, 15, 45, 135]
    assert delays[-1] is None
    waits = [delay for delay in delays if delay is not None]
    assert len(waits) == MAX_ATTEMPTS - 1
    assert waits == sorted(waits)
    assert max(waits) == 24 * 3600
    assert 2 * 24 * 3600 < sum(waits) < 3 * 24 * 3600


def test_retry_delays_have_jitter() -> None:
    assert [retry_delay_s(1, None, jitter) for jitter in (0, 0.5, 1)] == pytest.approx([4, 5, 6])


def test_retry_after_extends_the_delay_up_to_a_day() -> None:
    assert retry_delay_s(1, 120, 0.5) == 120
    assert retry_delay_s(5, 1, 0.5) == 405
    assert retry_delay_s(1, 1e9, 0.5) == 24 * 3600
    assert retry_delay_s(MAX_ATTEMPTS, 120, 0.5) is None


def test_parse_retry_after() -> None:
    now = float(int(time.time()))
    assert parse_retry_after("120", now) == 120
    assert parse_retry_after(formatdate(now + 90, usegmt=True), now) == 90
    assert parse_retry_after(formatdate(now - 90, usegmt=True), now) == 0
    for nonsense in ("", "-1", "soon", "1.5", "²", "Thu, 99 Foo 2026 99:99:99 GMT"):
        assert parse_retry_after(nonsense, now) is None


def test_delivery_after_attempt() -> None:
    delivered = delivery_after_attempt(3, DeliveryResponse(204), 100.0, 0.5)
    assert (delivered.status, delivered.attempts, delivered.next_attempt_at) == (DeliveryStatus.DELIVERED, 3, None)
    for response in (
        DeliveryResponse(302, "status 302"),
        DeliveryResponse(500, "status 500"),
        DeliveryResponse(error="no response within 15 s"),
    ):
        pending = delivery_after_attempt(1, response, 100.0, 0.5)
        assert (pending.status, pending.next_attempt_at) == (DeliveryStatus.PENDING, 105.0)
        assert (pending.last_status, pending.last_error) == (response.status, response.error)
        assert delivery_after_attempt(MAX_ATTEMPTS, response, 100.0, 0.5).status is DeliveryStatus.FAILED
    gone = delivery_after_attempt(1, DeliveryResponse(410, "status 410"), 100.0, 0.5)
    assert (gone.status, gone.next_attempt_at) == (DeliveryStatus.FAILED, None)


def test_signature_matches_the_specification() -> None:
    headers = WebhookSigner((SECRET,)).headers("msg_p5jXN8AQM9LWM0D4loKWxJek", '{"test": 2432232314}', 1614265330.9)
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_two_secrets_both_sign() -> None:
    body = '{"prompt": "häuschen"}'
    headers = WebhookSigner((SECRET, OTHER_SECRET)).headers("id", body, time.time())
    assert headers["webhook-signature"].count("v1,") == 2
    for secret in (SECRET, OTHER_SECRET):
        assert Verifier(secret).verify(body.encode(), headers) == {"prompt": "häuschen"}
    stranger = Verifier("whsec_" + base64.b64encode(b"y" * 32).decode())
    with pytest.raises(WebhookVerificationError):
        stranger.verify(body.encode(), headers)


def test_serve_generates_one_private_secret(tmp_path: Path) -> None:
    settings = ApiSettings(_env_file=None, data_dir=tmp_path)
    assert settings.webhook_secrets == ()
    ensure_secret(tmp_path)
    [secret] = settings.webhook_secrets
    ensure_secret(tmp_path)
    assert settings.webhook_secrets == (secret,)
    [file] = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert ApiSettings(_env_file=None, data_dir=tmp_path, webhook_secret=secret).webhook_secret == secret
    assert ApiSettings(_env_file=None, data_dir=tmp_path, webhook_secret=SECRET).webhook_secrets == (SECRET,)


@pytest.mark.parametrize("secret", ["hunter2", "whsec_", "whsec_hunter2", "whsec_" + "A" * 12, f"{SECRET} hunter2"])
def test_invalid_secret_is_rejected_without_showing_it(secret: str) -> None:
    with pytest.raises(ValidationError) as error:
        ApiSettings(_env_file=None, webhook_secret=secret)
    message = describe_errors(error.value)
    assert message.startswith("IMG2IMG_WEBHOOK_SECRET: ")
    assert not any(part in message for part in secret.split() if part != "whsec_")
    assert "got" not in message


def test_settings_hide_their_secret() -> None:
    settings = ApiSettings(_env_file=None, webhook_secret=f"{SECRET} {OTHER_SECRET}")
    assert settings.webhook_secrets == (SECRET, OTHER_SECRET)
    assert "whsec_" not in repr(settings) + str(settings)
    assert settings.as_environment()["IMG2IMG_WEBHOOK_SECRET"] == f"{SECRET} {OTHER_SECRET}"


def test_silent_hosts_get_short_timeouts_with_exceptions() -> None:
    timeouts = HostTimeouts(10)

    def attempts(count: int) -> list[float]:
        given = []
        for _ in range(count):
            given.append(timeouts.timeout_s("a"))
            timeouts.record("a", has_responded=False)
        return given

    assert attempts(12) == [10, 10, 10, 2, 2, 2, 10, 2, 2, 2, 10, 2]
    assert timeouts.timeout_s("b") == 10
    timeouts.record("a", has_responded=True)
    assert attempts(2) == [10, 10]


def test_owners_leave_room_for_one_more() -> None:
    for active in range(1, 300):
        limit = owner_limit(active)
        assert limit == 1 or active * limit < MAX_IN_FLIGHT
    assert owner_limit(0) == owner_limit(1) == MAX_IN_FLIGHT // 2
