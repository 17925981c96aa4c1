"""One layer becomes many that are trained, and one again: `expand`, and the blocks it knows.

Files, in the order in which data flows: `blocks`, `expanded_layers`, `collapsing`, `building`,
`norms`, `noticing`, `choosing`, `driver`.
"""

from reparam.expansion.blocks import Block, Kernel, Pool, Scale, Skip
from reparam.expansion.collapsing import collapsed
from reparam.expansion.driver import expand
from reparam.expansion.expanded_layers import ChannelScale, ExpandedLayer
