"""Signatures by Standard Webhooks: one for each secret, so that a receiver may know the old one or the new."""

import os
import secrets
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path

from standardwebhooks import Webhook as Signer

from ..settings import webhook_secret_file


class WebhookSigner:
    """Signs with every secret."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self._signers = [Signer(secret) for secret in secrets]

    def headers(self, message_id: str, body: str, sent_at: float) -> dict[str, str]:
        """The three headers that let a receiver verify a message. sent_at: seconds since the epoch."""
        moment = datetime.fromtimestamp(int(sent_at), UTC)
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(int(sent_at)),
            "webhook-signature": " ".join(signer.sign(message_id, moment, body) for signer in self._signers),
        }


def ensure_secret(data_dir: Path) -> None:
    """Draws the secret of a service that was given none, and keeps it in the data directory, unless there is one."""
    path = webhook_secret_file(data_dir)
    if path.exists():
        return
    new = path.with_suffix(".new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:  # noqa: PTH123  # needs the mode
        file.write(f"whsec_{b64encode(secrets.token_bytes(32)).decode()}\n")
    new.rename(path)
