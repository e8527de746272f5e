"""The page at `/`: its files, their headers, and the setting that removes it."""

import gzip
import re

import httpx
import pytest
from starlette.testclient import TestClient

from img2img.app.main import create_app
from img2img.app.playground.routes import STATIC, accepts_gzip
from img2img.app.settings import ApiSettings
from tests.support.authenticated import authenticated_server

MAX_COMPRESSED = 60 * 1024
ASSET = re.compile(r'(?:src|href)="\./(assets/[^"]+)"')


def test_page_and_its_assets_are_served(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-cache"
    assets = ASSET.findall(page.text)
    assert {path.rpartition(".")[2] for path in assets} == {"js", "css", "svg"}
    for path in assets:
        asset = http.get(f"/{path}")
        assert asset.status_code == 200
        assert asset.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert asset.headers["x-content-type-options"] == "nosniff"
        assert http.head(f"/{path}").headers["content-type"] == asset.headers["content-type"]
    missing = http.get("/assets/index-00000000.js")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")


def test_page_forbids_inline_code_and_other_origins(http: httpx.Client) -> None:
    page = http.get("/")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", page.text)


def test_page_is_sent_once_and_compressed(http: httpx.Client) -> None:
    first = http.get("/", headers={"Accept-Encoding": "gzip, br"})
    assert first.headers["content-encoding"] == "gzip"
    again = http.get("/", headers={"Accept-Encoding": "gzip", "If-None-Match": f'"x", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    plain = http.get("/", headers={"Accept-Encoding": "identity", "If-None-Match": first.headers["etag"]})
    assert (plain.status_code, plain.content) == (200, (STATIC / "index.html").read_bytes())
    assert "content-encoding" not in plain.headers
    assert plain.headers["vary"] == "Accept-Encoding"


@pytest.mark.parametrize(
    ("accept_encoding", "expected"),
    [
        ("gzip", True), ("br, GZIP;q=0.5", True), ("gzip; q=1", True), ("", False), ("br", False), ("gzip;q=0", False),
        ("gzip;q=0.000", False), ("x-gzip", False),
    ],
)  # fmt: skip
def test_compression_is_negotiated(accept_encoding: str, expected: bool) -> None:
    assert accepts_gzip(accept_encoding) is expected


def test_page_is_small() -> None:
    files = [path for path in STATIC.rglob("*") if path.is_file()]
    assert sum(len(gzip.compress(path.read_bytes())) for path in files) <= MAX_COMPRESSED


def test_page_needs_no_key_and_its_data_does(settings: ApiSettings) -> None:
    with authenticated_server(settings) as url, httpx.Client(base_url=url) as client:
        page = client.get("/")
        assert page.status_code == 200
        for path in ASSET.findall(page.text):
            assert client.get(f"/{path}").status_code == 200
        assert client.get("/models").status_code == 401


def test_setting_removes_the_page(settings: ApiSettings) -> None:
    app = create_app(settings.model_copy(update={"playground": False}))
    client = TestClient(app, base_url="http://localhost")
    assert client.get("/").status_code == 404
    assert client.get(f"/assets/{next((STATIC / 'assets').iterdir()).name}").status_code == 404
    assert client.get("/docs").status_code == 200
