"""Step-level batching of unmodified code: every job in its own greenlet, one shared forward pass.

The engine knows no queue, store, settings or job id: work goes in, a result or an error comes out.
"""

from worker.engine.engine import Engine, Gate, Stopped, Ticket
from worker.engine.faults import is_device_lost, is_out_of_memory

__all__ = ["Engine", "Gate", "Stopped", "Ticket", "is_device_lost", "is_out_of_memory"]
