"""Files as a whole or not at all, checkpoints, programs, and two forms timed in turns.

Files, in the order in which data flows: `atomic_write`, `checkpoints`, `fused_files`, `recording`,
`latency`.
"""

from reparam.deployment.atomic_write import check_folder, remove_partial_files, write_files
from reparam.deployment.checkpoints import read_state_dict, save_pickle, weights_writer
from reparam.deployment.fused_files import fused_bytes, load, save, state_bytes
from reparam.deployment.latency import Comparison, Latency, compare, cpu_threads, describe_machine
from reparam.deployment.recording import SUFFIXES, program_error, record
