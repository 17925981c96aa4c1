"""What is kept of a run: the state to go on from, weights, and its course.

Files, in the order in which data flows: `snapshots`, `run_log`, `run_folder`.
"""

from repvgg.training.keeping.run_folder import RunFolder
from repvgg.training.keeping.run_log import Row, RunLog

__all__ = ["Row", "RunFolder", "RunLog"]
