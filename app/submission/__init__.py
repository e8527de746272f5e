"""From a validated request to a queued job."""
