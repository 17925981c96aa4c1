"""Mistakes in `reparam/analysis/`."""

from tests.mutations.mistake import Mistake

IN_ANALYSIS = [
    Mistake(
        "a write is seen by a reader of the same name only",
        "analysis/aliasing.py",
        "any(self._is_read(n, first, ignoring) for n in others)\n",
        "False\n",
    ),
    Mistake(
        "what jumps is computed in float64",
        "analysis/constants.py",
        "        if Trait.DISCONTINUOUS not in traits(node) or converts(node):\n",
        "        if True:\n",
    ),
    Mistake(
        "a module of constants that changes or draws is one",
        "analysis/constants.py",
        "        if watch.drew or watch.changed:\n",
        "        if False:\n",
    ),
    Mistake(
        "the size of the example's channels is that of all inputs",
        "analysis/channels.py",
        "    shape = (facts.fixed if taken is None else facts.shapes).get(value)\n",
        "    shape = facts.shapes.get(value)\n",
    ),
    Mistake(
        "what is granted may be one axis less or more",
        "analysis/facts.py",
        "    for shift in (-1, 1, -2, 2, -3):\n",
        "    for shift in (-1, 1):\n",
    ),
    Mistake(
        "a number of channels that is taken for granted is not noted",
        "analysis/lifting.py",
        "                self.by_channels.add(node)\n",
        "                pass\n",
    ),
    Mistake(
        "a constant adds no axes to a value",
        "analysis/ranks.py",
        "        if (from_input and not axes.certain) or all(other < rank for other in known):\n",
        "        if True:\n",
    ),
    Mistake(
        "operators that draw random numbers draw none",
        "analysis/effects.py",
        "    return replace(effects, random=True) if _draws(node) else effects\n",
        "    return effects\n",
    ),
    Mistake(
        "a write to a parameter in place is no hazard",
        "analysis/aliasing.py",
        '                if member.op in ("placeholder", "get_attr"):\n',
        '                if member.op == "placeholder":\n',
    ),
]
