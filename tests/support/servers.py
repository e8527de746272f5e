"""Real servers for tests: a redis-server, and the API server on a loopback port."""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from img2img.app.http.uvicorn_protocol import ServerProtocol
from img2img.app.main import create_app
from img2img.app.settings import ApiSettings
from img2img.app.supervisor.embedded_redis import is_redis_ready, redis_command
from img2img.settings import embedded_redis_socket


@contextmanager
def redis_server(data_dir: Path) -> Iterator[str]:
    """Run a redis-server, and yield its URL."""
    process = subprocess.Popen(redis_command(data_dir))
    url = f"unix://{embedded_redis_socket(data_dir)}"
    try:
        while not is_redis_ready(url):
            assert process.poll() is None, "redis-server did not start"
        yield url
    finally:
        process.kill()
        process.wait()


@contextmanager
def http_server(settings: ApiSettings) -> Iterator[str]:
    """Run the API server on a loopback port, and yield its URL."""
    config = uvicorn.Config(create_app(settings), port=settings.port, http=ServerProtocol, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield settings.local_url
    finally:
        server.should_exit = True
        thread.join()
