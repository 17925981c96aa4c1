"""Mistakes in `reparam/capture/`."""

from tests.mutations.mistake import Mistake

IN_CAPTURE = [
    Mistake(
        "a tensor has every attribute",
        "capture/stand_ins/proxies.py",
        "        if not hasattr(Tensor, k):\n            self._absent(k, frame)\n",
        "",
    ),
    Mistake(
        "code that reads a value on its way to the next layer only hands it on",
        "capture/reading/passed_on.py",
        "flow.taken_by[before] == {after} and flow.takes[after] == {before}",
        "flow.takes[after] == {before}",
    ),
    Mistake(
        "code that gives a layer something else, too, hands on the result alone",
        "capture/reading/passed_on.py",
        "flow.taken_by[before] == {after} and flow.takes[after] == {before}",
        "flow.taken_by[before] == {after}",
    ),
    Mistake(
        "a loop runs to its end",
        "capture/reading/passed_on.py",
        "isinstance(node, ast.Break | ast.Continue) for node",
        "isinstance(node, ast.Continue) for node",
    ),
    Mistake(
        "a global variable that a forward sets is its own",
        "capture/stand_ins/type_queries.py",
        "        if _sets_a_global(code):\n",
        "        if False:\n",
    ),
    Mistake(
        "code that sizes decide may fill a list of its caller's",
        "capture/code_statement.py",
        "        changed = _CHANGEABLE if self.writes else nn.Module\n",
        "        changed = nn.Module\n",
    ),
    Mistake(
        "what follows a forward that may end early joins what is in it",
        "capture/tracer.py",
        "            if call in self.doubts.returning_early:\n",
        "            if False:\n",
    ),
    Mistake(
        "code that a forward runs ends that forward",
        "capture/stand_ins/doubts.py",
        '        if getattr(forward, "__code__", None) is not frame.f_code:\n',
        "        if False:\n",
    ),
    Mistake(
        "a piece of code forgets what an earlier turn of a loop has set",
        "capture/reading/pieces.py",
        "    return not piece.unsure and not piece.needed - piece.before\n",
        "    return not piece.needed - piece.before\n",
    ),
    Mistake(
        "a check whose value nobody reads goes",
        "analysis/effects.py",
        "    return replace(effects, acts=statement.checks)\n",
        "    return effects\n",
    ),
    Mistake(
        "a second statement of a method is looked for where the first version of it stood",
        "capture/stand_ins/outlining.py",
        "indented=earlier is None",
        "indented=True",
    ),
    Mistake(
        "what a call left in an attribute is what the next one makes",
        "capture/stand_ins/set_attributes.py",
        'value.tracer.create_proxy("call_function", _left_by_a_run, (), {})\n'
        "            self._left_by_first.append(left.node)\n",
        "value.tracer.proxy(value.node)\n",
    ),
    Mistake(
        "sizes of example inputs decide which layers run",
        "capture/stand_ins/decided_by_inputs.py",
        "        return self._answer(proxy.node) if asks_kinds(proxy.node) else None\n",
        "        return self._answer(proxy.node)\n",
    ),
    Mistake(
        "what code decides of an entry of a container is asked of the container",
        "capture/stand_ins/kinds.py",
        "            call.tensors.add((name, *keys_after(call.arguments[name], chain)))\n",
        "            call.tensors.add((name,))\n",
    ),
]
