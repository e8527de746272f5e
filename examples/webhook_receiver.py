"""Receive and verify webhooks. Needs `pip install standardwebhooks`.

`img2img serve` writes its secret to data/webhook-secret. With IMG2IMG_WEBHOOK_ALLOW_PRIVATE=true it also sends webhooks
to this machine:

    WEBHOOK_SECRET=$(cat data/webhook-secret) python examples/webhook_receiver.py 9000
    img2img submit photo.jpg --webhook http://127.0.0.1:9000/
"""

import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

WEBHOOK = Webhook(os.environ["WEBHOOK_SECRET"])


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            event = WEBHOOK.verify(body, dict(self.headers))
        except WebhookVerificationError:
            self.send_response(401)
        else:
            # An event can arrive more than once, with the same `webhook-id`.
            print(event["type"], event["data"]["id"], flush=True)
            self.send_response(204)
        self.end_headers()


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
    HTTPServer(("127.0.0.1", port), Receiver).serve_forever()
