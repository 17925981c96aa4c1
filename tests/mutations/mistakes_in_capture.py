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
        "capture/stand_ins/questions.py",
        "        if _sets_a_global(code):\n",
        "        if False:\n",
    ),
]
