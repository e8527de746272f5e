"""Fixtures of the engine tests."""

from tests.support.engines import no_collector, no_grad, one_thread  # noqa: F401  # fixtures
