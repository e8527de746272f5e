"""Signs webhooks as specified by Standard Webhooks (https://www.standardwebhooks.com)."""

import os
import secrets
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path

from standardwebhooks import Webhook as Signer

from ..settings import webhook_secret_file


class WebhookSigner:
    """Signs with every secret, so that secrets can be rotated: a receiver accepts any one signature."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self._signers = [Signer(secret) for secret in secrets]

    def headers(self, message_id: str, body: str, sent_at: float) -> dict[str, str]:
        """Return the headers by which a receiver verifies a message. `sent_at` is in seconds since the epoch."""
        timestamp = datetime.fromtimestamp(int(sent_at), UTC)
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(int(sent_at)),
            "webhook-signature": " ".join(signer.sign(message_id, timestamp, body) for signer in self._signers),
        }


def ensure_secret(data_dir: Path) -> None:
    """Generate the secret of a service without a configured one, unless the data directory already contains it."""
    path = webhook_secret_file(data_dir)
    if path.exists():
        return
    new = path.with_suffix(".new")
    # Path.open cannot set the mode.
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:  # noqa: PTH123
        file.write(f"whsec_{b64encode(secrets.token_bytes(32)).decode()}\n")
    new.rename(path)
