"""Mistakes in `reparam/capture/`."""

from tests.mutations.mistake import Mistake

IN_CAPTURE = [
    Mistake(
        "a module whose __call__ is its own is traced through",
        "capture/tracer.py",
        "        if has_own_call(m):\n",
        "        if False:\n",
    ),
    Mistake(
        "a forward that is set on the instance is not looked into",
        "capture/tracer.py",
        '        if "forward" in vars(m) or parametrize.is_parametrized(m):\n',
        "        if parametrize.is_parametrized(m):\n",
    ),
    Mistake(
        "nobody remembers that the type of a weight told the way",
        "capture/tracer.py",
        "            call.typed.update(weights)\n",
        "            pass\n",
    ),
    Mistake(
        "a call with state may run differently the next time",
        "capture/tracing_attempts.py",
        "        settled=settled - tracer.in_context - around,\n",
        "        settled=stateful,\n",
    ),
    Mistake(
        "code that reads what is kept of earlier calls is like any other",
        "capture/tracing_attempts.py",
        "    stateful = tracer.in_context | tracer.kept.readers | changing | around | filling\n",
        "    stateful = tracer.in_context | changing | around | filling\n",
    ),
    Mistake(
        "a second run that does otherwise settles a call",
        "capture/stand_ins/kept_values.py",
        "    if not alike:\n",
        "    if False:\n",
    ),
    Mistake(
        "a tensor that a container keeps is a constant",
        "capture/tracing_attempts.py",
        "    if made and not lessons.keeping and tracer.kept.in_containers(tracer.watch):\n",
        "    if False:\n",
    ),
    Mistake(
        "torch says that it traces",
        "capture/stand_ins/questions.py",
        "        return not user_asks(sys._getframe(1)) and asks_tracing(*args, **kwargs)\n",
        "        return asks_tracing(*args, **kwargs)\n",
    ),
    Mistake(
        "a mode of torch at tracing is that of every run",
        "capture/stand_ins/questions.py",
        '        if asking.partition(".")[0] not in ("torch", "reparam"):\n',
        "        if False:\n",
    ),
    Mistake(
        "types may be compared by identity",
        "capture/stand_ins/questions.py",
        '            if "self" not in following:\n                return True\n',
        "",
    ),
    Mistake(
        "isinstance under another name is Python's",
        "capture/stand_ins/questions.py",
        "            if called is _ISINSTANCE and name != _ISINSTANCE.__name__:\n",
        "            if False:\n",
    ),
    Mistake(
        "a tensor has every attribute",
        "capture/stand_ins/proxies.py",
        "        if not hasattr(Tensor, k):\n            self._absent(k, frame)\n",
        "",
    ),
    Mistake(
        "a fused model takes values of any number of axes",
        "capture/checked_values.py",
        "    wrong = bool(axes) and x.dim() != axes\n",
        "    wrong = False\n",
    ),
    Mistake(
        "a fused model takes values of any number of channels",
        "capture/checked_values.py",
        "        wrong = wrong or x.shape[channel_axis] != channels\n",
        "        pass\n",
    ),
    Mistake(
        "the parameters that were taken for tensors are not noted",
        "capture/tracer.py",
        "            call.tensors.add(name)\n",
        "            pass\n",
    ),
    Mistake(
        "a conversion to a type that is not certain is left out",
        "capture/tracer.py",
        "            if dtype and self._are_equal(self.types.of(args[0].node), dtype):\n",
        "            if dtype:\n",
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
        "capture/stand_ins/questions.py",
        "        if _sets_a_global(code):\n",
        "        if False:\n",
    ),
    Mistake(
        "code that sizes decide may fill a list of its caller's",
        "capture/statement.py",
        "        changed = _CHANGEABLE if self.writes else nn.Module\n",
        "        changed = nn.Module\n",
    ),
    Mistake(
        "what follows a forward that may end early joins what is in it",
        "capture/tracer.py",
        "            if call in self.returning_early:\n",
        "            if False:\n",
    ),
    Mistake(
        "code that a forward runs ends that forward",
        "capture/tracer.py",
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
        "        return replace(effects, acts=statement.checks)\n",
        "        return effects\n",
    ),
    Mistake(
        "a second statement of a method is looked for where the first version of it stood",
        "capture/stand_ins/outlining.py",
        "indented=earlier is None",
        "indented=True",
    ),
]
