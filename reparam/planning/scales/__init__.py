"""Scales and shifts that leave their place: for what comes before them, or for what reads them.

Files, in the order in which data flows: `only_readers`, `distributed_scales`, `scale_chains`,
`gathered_scales`.
"""

from reparam.planning.scales.distributed_scales import distributed_regions, why_not_distributed
from reparam.planning.scales.gathered_scales import gathered_regions, why_not_gathered
from reparam.planning.scales.scale_chains import chained_regions, host_in
