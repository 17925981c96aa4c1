"""What reparam loads through the entry point."""

import reparam
from decibels.gain import Gain


@reparam.register_rule(Gain)
def gain(module, x):
    """A scale and a shift per channel."""
    return x.scale(10 ** (module.level / 20)).shift(module.offset)
