"""The worker process itself: memory allocation, the engine watchdog and engine metrics."""
