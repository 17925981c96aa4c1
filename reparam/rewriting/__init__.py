"""A decision carried out: the graph edited, put back into the module tree or a program.

Files, in the order in which data flows: `changes`, `invariants`, `copied_metadata`, `repeats`,
`ranks_told`, `placement`, `rewriter`, `new_code`, `fused_forward`, `other_methods`, `pruning`,
`grafting`, `frozen_parts`, `program_writing`.
"""

from reparam.rewriting.changes import Rewrite
from reparam.rewriting.frozen_parts import freeze
from reparam.rewriting.grafting import graft
from reparam.rewriting.new_code import GraftError, TornError, UnlikeError
from reparam.rewriting.placement import frame_of
from reparam.rewriting.program_writing import copy_program, rebuild
from reparam.rewriting.repeats import signature
from reparam.rewriting.rewriter import frame_problems, rewrite
