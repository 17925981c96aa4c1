"""Mistakes in `reparam/planning/`."""

from tests.mutations.mistake import Mistake

IN_PLANNING = [
    Mistake(
        "a batch norm keeps any layout",
        "planning/layouts.py",
        "    return in_order and order is not None and order == _channels_last(len(order))\n",
        "    return in_order\n",
    ),
    Mistake(
        "of one position means of any number",
        "planning/layouts.py",
        "    return rank is not None and rank - facts.ones.get(value, 0) <= 2\n",
        "    return rank is not None\n",
    ),
    Mistake(
        "what was joined before is forgotten",
        "planning/dominators.py",
        "        return (*self.joined, *self.inner)\n",
        "        return self.inner\n",
    ),
    Mistake(
        "what becomes nothing may stand for the operator",
        "planning/regions.py",
        "            if link is not self.main and link.form is not None\n",
        "            if link is not self.main\n",
    ),
    Mistake(
        "what is cheaper at the example's size is cheaper",
        "planning/appraiser.py",
        "            if anywhere.multiply_adds < form.multiply_adds * of_one:\n",
        "            if False:\n",
    ),
    Mistake(
        "a term that a sum multiplies takes the constant of a norm",
        "planning/distributed_scales.py",
        "shifts=operand.shifts and term.identity)",
        "shifts=operand.shifts)",
    ),
    Mistake(
        "readers are rewritten together although one cannot be",
        "planning/joint_readers.py",
        "        if not fitting:\n            return []\n",
        "        if not fitting:\n            continue\n",
    ),
    Mistake(
        "a value that shares memory and is written to later may get memory of its own",
        "planning/hazards.py",
        "    if not facts.memory.shows_copy(value, ignoring=region.dying):\n",
        "    if True:\n",
    ),
    Mistake(
        "a node counts at the positions of the value",
        "planning/positions.py",
        "least.get(node, 0.0) * ratio)",
        "least.get(node, 0.0))",
    ),
    Mistake(
        "a term that others read joins another",
        "planning/regrouped_sums.py",
        "            alone = appraiser.readers[operand] - appraiser.dead == {total}\n",
        "            alone = True\n",
    ),
    Mistake(
        "a scale behind a norm goes in although somebody reads the norm",
        "planning/scale_chains.py",
        "    if any(link.value not in gone for link in candidate.path):\n",
        "    if value not in gone:\n",
    ),
    Mistake(
        "a norm that has no bias takes a constant in",
        "planning/scale_chains.py",
        "    if form.has_bias and not step.norm.takes_constant:\n",
        "    if False:\n",
    ),
]
