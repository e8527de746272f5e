"""Step-level batching of unmodified code: every job in its own greenlet, one shared forward pass.

The engine knows no queue, store, settings or job id: work goes in, a result or an error comes out.
"""

from .engine import Engine, EngineTask, Gate, TaskStopped
from .errors import is_device_lost, is_out_of_memory

__all__ = ["Engine", "EngineTask", "Gate", "TaskStopped", "is_device_lost", "is_out_of_memory"]
