"""Text of Redis replies."""


def decode(reply: object) -> str:
    """Return a reply as text. Clients here reply with bytes, because RQ stores bytes that are no text."""
    return reply.decode() if isinstance(reply, bytes) else str(reply)
