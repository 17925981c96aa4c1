"""Files as a whole or not at all, checkpoints, programs, and two forms timed in turns.

Files, in the order in which data flows: `atomic_write`, `checkpoints`, `programs`, `latency`.
"""
