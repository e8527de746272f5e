"""Assertions on error responses."""

from typing import Any

import httpx


def assert_problem(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """Assert that the response is a problem document with this status and code, and return the document."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert problem["type"] == f"/docs/errors#{problem['code']}"
    assert problem["title"]
    assert problem["detail"]
    assert code is None or problem["code"] == code
    return problem


def status_at(path: str, status: int) -> int:
    """Return the status of an error at a path: OpenAI's clients know invalid requests by 400 only."""
    return 400 if path.startswith("/v1/") and status in (415, 422) else status


def assert_error(response: httpx.Response, status: int, code: str) -> str:
    """Assert that the response is an error in the format of the API at its path, and return its sentence."""
    assert response.status_code == status, response.text
    match response.url.path.split("/")[1]:
        case "v1":
            error = response.json()["error"]
            assert error["code"] == code
            return str(error["message"])
        case "hf":
            return str(response.json()["error"])
        case _:
            return str(assert_problem(response, status, code)["detail"])
