"""Fixtures of the engine tests."""

from tests.support.engines import no_collector, one_thread  # noqa: F401  # fixtures
