"""Mistakes in `reparam/planning/`."""

from tests.mutations.mistake import Mistake

IN_PLANNING = [
    Mistake(
        "what checkpointing computes again is written to in place",
        "planning/hazards.py",
        "        or _checkpoint_is_written(region, facts)\n",
        "",
    ),
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
        "what an equation computes lies as a convolution's value",
        "planning/layouts.py",
        "            asks = views or (anew and Trait.MUST_VIEW not in known)\n",
        "            asks = views\n",
    ),
    Mistake(
        "a scale behind a norm goes in although somebody reads the norm",
        "planning/scales/scale_chains.py",
        "    if any(link.value not in gone for link in candidate.path):\n",
        "    if value not in gone:\n",
    ),
    Mistake(
        "a norm that has no bias takes a constant in",
        "planning/scales/scale_chains.py",
        "    if form.has_bias and not step.norm.takes_constant:\n",
        "    if False:\n",
    ),
    Mistake(
        "a norm leaves its weight although somebody else reads it",
        "planning/folding/folded_norms.py",
        "                return _no_layer(reader)\n            commuting",
        "                continue\n            commuting",
    ),
    Mistake(
        "a norm leaves its weight to layers that others use",
        "planning/folding/shared_weights.py",
        "        alike = all(weights.get(node) == weights[region.value] for node in sharing)\n",
        "        alike = True\n",
    ),
    Mistake(
        "a bias crosses a padded pool",
        "planning/folding/folded_norms.py",
        "        if weights.has_bias and not commuting.constants:\n",
        "        if False:\n",
    ),
    Mistake(
        "the weight of a norm goes along any axis",
        "planning/folding/folded_norms.py",
        "    if axis != -1 - len(weights.axes or ()):\n",
        "    if False:\n",
    ),
    Mistake(
        "a scale goes on across a reshape as if it split nothing",
        "planning/dominators.py",
        "            form = spread(form, places.size, places.run)\n",
        "            form = spread(form, places.size, 1)\n",
    ),
    Mistake(
        "a scale of a part goes although a term of what takes it in is read elsewhere",
        "planning/scales/gathered_scales.py",
        "    if not nearest or len(nearest) < len(options) or not inner <= gone:\n",
        "    if not nearest or len(nearest) < len(options):\n",
    ),
    Mistake(
        "a shift of a part passes a pool that counts zeros",
        "planning/scales/gathered_scales.py",
        "    if gathered.form.has_bias and not all(",
        "    if False and not all(",
    ),
    Mistake(
        "what a part scaled may be written to before it is read",
        "planning/hazards.py",
        "        or _scaled_is_written(region, facts, settled)\n",
        "",
    ),
    Mistake(
        "a part that several concatenations share may be written to between them",
        "planning/sums/stacked_sums.py",
        "    if _is_written(same, [kept, *joining], appraiser):\n",
        "    if False:\n",
    ),
    Mistake(
        "a concatenation leaves an addition that is gone already",
        "planning/sums/stacked_sums.py",
        "        while total in leaving:\n",
        "        while False:\n",
    ),
    Mistake(
        "a concatenation that is one operator already is opened",
        "planning/scales/gathered_scales.py",
        "    return step if isinstance(step, AffineStack) and not gone else None\n",
        "    return step if isinstance(step, AffineStack) else None\n",
    ),
    Mistake(
        "a linear layer takes in a convolution of a value that is written to between",
        "planning/sums/linear_sums.py",
        "    if _is_written(views, total, region, appraiser):\n",
        "    if False:\n",
    ),
    Mistake(
        "a linear layer takes in a convolution of other rows",
        "planning/sums/linear_sums.py",
        "    if _reshaped(link.base, appraiser)[-1] is not origin:\n",
        "    if False:\n",
    ),
    Mistake(
        "the size of the example inputs is not checked",
        "planning/sums/linear_sums.py",
        "    if None not in certain and not appraiser.facts.rests_on_granted(link.nodes):\n",
        "    if True:\n",
    ),
    Mistake(
        "a linear layer whose value is read elsewhere takes in a convolution",
        "planning/sums/linear_sums.py",
        "        appraiser.readers_of_value(value) == {reader}\n",
        "        True\n",
    ),
    Mistake(
        "a sum of rows that broadcasts is one of equal shapes",
        "analysis/extents.py",
        " if ours != theirs]) <= 1\n",
        " if ours != theirs]) <= 9\n",
    ),
    Mistake(
        "a convolution runs once for each row of a linear layer",
        "planning/regions.py",
        "        return 1.0 if self.rows is None else float(self.rows.positions)\n",
        "        return 1.0\n",
    ),
    Mistake(
        "a convolution is timed against itself with other numbers",
        "planning/cost_functions.py",
        '    return replace(operator, name="", weights=0)\n',
        "    return operator, operator.planned\n",
    ),
    Mistake(
        "times within the noise of the machine decide",
        "planning/stopwatch.py",
        "            if abs(difference) > _CERTAIN * error:\n",
        "            if True:\n",
    ),
    Mistake(
        "what nobody can tell is taken though it has more multiply-adds",
        "planning/cost_functions.py",
        "copysign(_LEAST, fewer) if fewer else 0.0",
        "_LEAST",
    ),
]
