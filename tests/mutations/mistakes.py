"""The mistakes: those of laws and rules, and those of each room, which have a file each."""

from tests.mutations.mistake import Mistake
from tests.mutations.mistakes_in_analysis import IN_ANALYSIS
from tests.mutations.mistakes_in_capture import IN_CAPTURE
from tests.mutations.mistakes_in_expansion import IN_EXPANSION
from tests.mutations.mistakes_in_following import IN_FOLLOWING
from tests.mutations.mistakes_in_fusing import IN_FUSING
from tests.mutations.mistakes_in_modules import IN_MODULES
from tests.mutations.mistakes_in_planning import IN_PLANNING
from tests.mutations.mistakes_in_rewriting import IN_REWRITING
from tests.mutations.mistakes_in_verification import IN_VERIFICATION

MISTAKES = [
    Mistake(
        "what several steps need is overwritten by the first",
        "algebra/kernels.py",
        "            return kernel.clone(), None if bias is None else bias.clone()\n",
        "            return kernel, bias\n",
    ),
    Mistake(
        "a sequence pads with zeros behind a bias",
        "algebra/axis_composition.py",
        "        if inner_constant:\n",
        "        if False:\n",
    ),
    Mistake(
        "a sequence pads between two kernels of several taps",
        "algebra/axis_composition.py",
        "    needs_before, needs_after = inner.reach - inner.stride + 1, inner.reach\n",
        "    needs_before, needs_after = 0, 0\n",
    ),
    Mistake(
        "the inner stride is forgotten where paddings are composed",
        "algebra/axis_composition.py",
        "        before + inner.stride * outer.before,\n",
        "        before + outer.before,\n",
    ),
    Mistake(
        "a reshape makes no runs of neighbours",
        "rules/views.py",
        "            number *= size\n",
        "            number *= 1\n",
    ),
    Mistake(
        "channels need not fill the axis that they are split from",
        "rules/steps.py",
        "            if size and size % (run * channels) == 0:\n",
        "            if size:\n",
    ),
    Mistake(
        "a reflected border repeats the edge",
        "algebra/known_sizes.py",
        "        return last - (last - positions.abs()).abs()\n",
        "        return positions.clamp(0, last)\n",
    ),
    Mistake(
        "several values in a row have one bias each channel after the other",
        "algebra/known_sizes.py",
        "bias.expand(rows).repeat_interleave(positions).repeat(times)",
        "bias.expand(rows).repeat(positions * times)",
    ),
    Mistake(
        "the stride of a convolution at a known size is forgotten",
        "algebra/known_sizes.py",
        "    return _entries(axis.stride * outputs + taps, axis, size) == inputs\n",
        "    return _entries(outputs + taps, axis, size) == inputs\n",
    ),
    Mistake(
        "branches of different size add up",
        "algebra/axis_composition.py",
        "    if excess != other:\n",
        "    if False:\n",
    ),
    Mistake(
        "taps of branches are added without aligning them",
        "algebra/laws.py",
        "(axis.before - own.before) // axis.dilation for",
        "0 * (axis.before - own.before) for",
    ),
    Mistake(
        "a sum takes the larger number of groups, not the common divisor",
        "algebra/laws.py",
        "gcd(first.groups, second.groups or 1)\n",
        "max(first.groups, second.groups or 1)\n",
    ),
    Mistake(
        "the bias in front of a scale is not scaled",
        "algebra/kernels.py",
        "    constant = _response(outer_kernel, outer_groups, bias)\n",
        "    scales = outer_groups == channels == outer_kernel.shape[0]\n"
        "    constant = bias if scales else _response(outer_kernel, outer_groups, bias)\n",
    ),
    Mistake(
        "batch norm forgets eps",
        "algebra/affine.py",
        "(exact(variance) + eps).rsqrt()",
        "exact(variance).rsqrt()",
    ),
    Mistake(
        "the channels of a grouped transposed convolution are mixed up",
        "algebra/affine.py",
        ".unflatten(0, (groups, -1)).transpose(1, 2)).flatten(0, 1)",
        ".unflatten(0, (groups, -1))).flatten(0, 1)",
    ),
    Mistake(
        "an average pool divides by the full window although it leaves its padding out",
        "rules/fixed_kernels.py",
        "    elif padded and not counted and divisor_override is None:\n",
        "    elif False:\n",
    ),
    Mistake(
        "an average pool forgets divisor_override",
        "rules/fixed_kernels.py",
        "    return pooled.scale(prod(kernel) / divisor_override)\n",
        "    return pooled\n",
    ),
    Mistake(
        "padding with any value passes for padding with the constant",
        "algebra/laws.py",
        "    if bool(((value - constant).abs() <= bound).all()):\n",
        "    if True:\n",
    ),
    Mistake(
        "padding modes that differ from axis to axis become one",
        "algebra/axis_composition.py",
        "    if len(modes) > 1:\n",
        "    if False:\n",
    ),
    Mistake(
        "a second reader is ignored",
        "planning/appraiser.py",
        "                reader in gone\n                or reader in self.dead\n",
        "                True\n                or reader in self.dead\n",
    ),
    Mistake(
        "what costs more multiply-adds is taken if it saves operators",
        "planning/cost_functions.py",
        "        return self.amount < 0 or self.operators < 0\n",
        "        return self.operators < 0\n",
    ),
    Mistake(
        "a write in place to a value that is read later is ignored",
        "analysis/aliasing.py",
        "                if any(self.order[user] > position for user in readers):\n",
        "                if False:\n",
    ),
    Mistake(
        "a write in place to the model's input is ignored",
        "analysis/aliasing.py",
        '                if member.op in ("placeholder", "get_attr"):\n',
        "                if False:\n",
    ),
    Mistake(
        "what is assigned to a border may be more than it",
        "analysis/borders.py",
        "    if inside or int((writer < 0).sum()) > 1:\n",
        "    if int((writer < 0).sum()) > 1:\n",
    ),
    Mistake(
        "what is assigned to a border may be less than it",
        "analysis/borders.py",
        "    if inside or int((writer < 0).sum()) > 1:\n",
        "    if inside:\n",
    ),
    Mistake(
        "an index of a border may mean another part at another size",
        "analysis/borders.py",
        "bound is None or (type(bound) is int and -axis.after <= bound <= axis.before)\n",
        "bound is None or type(bound) is int\n",
    ),
    Mistake(
        "the numbers that are assigned to a border lie along another axis",
        "analysis/borders.py",
        "    return computed(_flat, value) if channels == value.numel() else None\n",
        "    return computed(_flat, value)\n",
    ),
    Mistake(
        "other writes to a border are ignored",
        "analysis/borders.py",
        "    if facts.memory.write_between(padded, start, end, ignoring=assigned):\n",
        "    if False:\n",
    ),
    Mistake(
        "a constant that is written to through a view stays one",
        "analysis/constants.py",
        "            or any(shared.overwrites(writer) for writer in writers)\n",
        "",
    ),
    Mistake(
        "the value of a caller is taken for what its part made of it",
        "capture/tracer.py",
        "self.stack[-1] in call.ancestry()\n",
        "True\n",
    ),
    Mistake(
        "a write between two reads is ignored",
        "planning/hazards.py",
        "            if operand not in bases and facts.memory.write_between(\n",
        "            if False and facts.memory.write_between(\n",
    ),
    Mistake(
        "views share no memory with what they look at",
        "analysis/aliasing.py",
        "            seen = (places[source] for source in seen_as.get(node, ()))\n",
        "            seen = ()\n",
    ),
    Mistake(
        "a subclass is taken for its parent",
        "rules/registry.py",
        "            target = _stands_for(target)\n",
        "            target = next((k for k in target.__mro__ if k in self._rules), target)\n",
    ),
    Mistake(
        "hooks are ignored",
        "modules/tree.py",
        "    if has_hooks(module):\n",
        "    if False:\n",
    ),
    Mistake(
        "a forward set on the instance is ignored",
        "modules/tree.py",
        '    if "forward" in vars(module):\n',
        "    if False:\n",
    ),
    Mistake(
        "a module that is called twice is replaced in its place",
        "rewriting/placement.py",
        "self.uses[id(old)] == self.traced_through[id(caller.module)]",
        "True",
    ),
    Mistake(
        "every term of a sum takes the constant of a norm",
        "planning/scales/distributed_scales.py",
        "operand if index == first else replace(operand, shifts=False)",
        "operand",
    ),
    Mistake(
        "a scale moves into a term that is read elsewhere",
        "planning/scales/only_readers.py",
        "while is_read_only_by(readers, node, appraiser):",
        "while True:",
    ),
    Mistake(
        "channels are taken for groups in whatever order they are read",
        "algebra/selection.py",
        "together == tuple(range(total))",
        "len(together) == total",
    ),
    Mistake(
        "a depthwise kernel that loses channels reads the first ones",
        "algebra/selection.py",
        "columns=columns if columns.indices != tuple(range(columns.total)) else None,",
        "columns=None,",
    ),
    Mistake(
        "a block that other calls want as it was is changed",
        "rewriting/placement.py",
        "        serves = self._serves_others(next(repeated, frame))\n",
        "        serves = False\n",
    ),
    Mistake(
        "a method that may run a part alone is not asked",
        "rewriting/placement.py",
        "            holder != id(frame.module)\n            or name not in running\n",
        "            False\n",
    ),
    Mistake(
        "what is still read is pruned",
        "rewriting/pruning.py",
        "    kept = _kept(target, rewrite) | set(elsewhere)\n",
        "    kept = set(elsewhere)\n",
    ),
    Mistake(
        "a norm of instances is one of all channels",
        "rules/normalization.py",
        "    return _normalized(x, weight, bias, -1 - axes, instance_norm(channels, axes, eps))\n",
        "    return _normalized(x, weight, bias, -1 - axes, group_norm(1, channels, eps))\n",
    ),
    Mistake(
        "statistics of the batch pass for running ones",
        "rules/normalization.py",
        "    if training is not False or running_mean is None or running_var is None:\n",
        "    if running_mean is None or running_var is None:\n",
    ),
    Mistake(
        "a factor per channel may widen a value of one channel",
        "analysis/lifting.py",
        "            return _may_broadcast(step, node, self.facts, self.steps) or step\n",
        "            return step\n",
    ),
    Mistake(
        "parameters of different types are folded together",
        "algebra/laws.py",
        "    if None not in dtypes and dtypes[0] != dtypes[1]:\n",
        "    if False:\n",
    ),
    Mistake(
        "code that was not traced is taken to only call what it reaches inside of",
        "capture/reading/follower.py",
        "                    if value.modules:\n                        self.open(thing)\n",
        "",
    ),
    Mistake(
        "a forward with other arguments runs over changed children",
        "rewriting/placement.py",
        (
            "        if names and not knows_only_tensors(frame) "
            "and not self._run_as_one(use, region, swaps):\n"
        ),
        "        if False:\n",
    ),
    Mistake(
        "code that moves into its caller's is taken to stay",
        "rewriting/grafting.py",
        "        if not knows_only_tensors(owner):\n            return True\n",
        "",
    ),
    Mistake(
        "readers of one value take its path in or cross it, each as it likes",
        "planning/joint_readers.py",
        "form.crossed & shared == kept & form.inner]",
        "form is not None]",
    ),
    Mistake(
        "how values lie in memory is not followed",
        "planning/layouts.py",
        "    if views or anew or (moves and facts.by_layout):\n",
        "    if False:\n",
    ),
    Mistake(
        "the operands of a sum have scales of their own",
        "equalization/scale_flow.py",
        "        scaling.groups.tie(layouts[0].channels, layout.channels)\n",
        "        pass\n",
    ),
    Mistake(
        "a scale passes a clamp with any bounds",
        "equalization/homogeneous.py",
        "(type(bound) in (int, float) and bound == 0)",
        "True",
    ),
    Mistake(
        "a forward with other arguments does not see scaled values",
        "equalization/scale_flow.py",
        "        if above and may_run_otherwise(call):\n",
        "        if False:\n",
    ),
    Mistake(
        "a weight that other code reads is scaled",
        "equalization/scalable_weights.py",
        "len(readers[memory(tensor)]) > 1",
        "False",
    ),
    Mistake(
        "what is read is scaled as what is made is",
        "equalization/new_weights.py",
        "made.view(count, -1, 1) / read.view(count, 1, -1)",
        "made.view(count, -1, 1) * read.view(count, 1, -1)",
    ),
    Mistake(
        "several positions of a channel are taken for one",
        "equalization/scale_flow.py",
        "for channel in read.channels for _ in range(times))",
        "for _ in range(times) for channel in read.channels)",
    ),
    Mistake(
        "weights lose digits unseen",
        "algebra/lowering.py",
        "> 4 * rounding).any())",
        "> 40 * rounding).any())",
    ),
    Mistake(
        "a transposed kernel may ask for as much output padding as its stride",
        "algebra/lowering.py",
        "        and 0 <= axis.output_padding < max(axis.stride, axis.dilation)\n",
        "        and 0 <= axis.output_padding <= max(axis.stride, axis.dilation)\n",
    ),
    *IN_MODULES,
    *IN_CAPTURE,
    *IN_ANALYSIS,
    *IN_PLANNING,
    *IN_REWRITING,
    *IN_VERIFICATION,
    *IN_FOLLOWING,
    *IN_FUSING,
    *IN_EXPANSION,
]
