"""Sums of several values of which terms become one operator.

Files, in the order in which data flows: `regrouped_sums`, `linear_sums`, `stacked_sums`.
"""

from reparam.planning.sums.linear_sums import linear_regions, why_not_linear
from reparam.planning.sums.regrouped_sums import regrouped_regions
from reparam.planning.sums.stacked_sums import stacked_regions
