"""Starts the thread that runs the engine."""

import threading

import torch

from ..engine.engine import Engine


def start_engine(engine: Engine) -> threading.Thread:
    """Run the engine on its own thread, and return that once its number of OpenMP threads is set.

    Threads that begin later may then set their own without changing that of the engine.
    """
    has_threads = threading.Event()

    def run() -> None:
        torch.get_num_threads()
        has_threads.set()
        engine.run()

    thread = threading.Thread(target=run, name="engine", daemon=True)
    thread.start()
    has_threads.wait()
    return thread
