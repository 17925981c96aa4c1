"""Norms that leave their weight and bias to what reads them, where somebody wishes it.

Files, in the order in which data flows: `shared_weights`, `folded_norms`.
"""

from reparam.planning.folding.folded_norms import folded_regions
from reparam.planning.folding.shared_weights import Folding
