"""The ranges of channels made even across layers: the public call `equalize`.

Files, in the order in which data flows: `channel_layouts`, `homogeneous`, `scalable_weights`,
`scale_flow`, `ranges`, `new_weights`, `value_check`, `driver`.
"""

from reparam.equalization.driver import equalize
