"""Check that modules with new parts or new code return what they returned before.

A region may change what a module inside it returns: a scale moves out of it, say. What holds the
whole of its regions returns the same.
"""

from __future__ import annotations

from torch import Tensor, nn

from reparam.calls import Call
from reparam.edits import Rewrite
from reparam.frames import frame_of
from reparam.graft import Grafted
from reparam.lowering import lower
from reparam.modules import fetch
from reparam.parts import Part
from reparam.sampling import MODULE_BOUND, is_chaotic, may_run, module_error, sample_calls
from reparam.slicing import GraftError
from reparam.structures import nodes_in


class MismatchError(GraftError):
    """A module with new code returns something else than it did."""


class Check:
    """Remembers what the modules around the regions of a part return.

    Args:
        part: The part, planned; its graph is not edited yet.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self.regions = part.decision.regions
        self.frames = {region.value: frame_of(part.trace, region) for region in self.regions}
        wanted = {call for frame in self.frames.values() for call in frame.ancestry()}
        self.samples = sample_calls(part, wanted)

    def run(self, grafted: Grafted, rewritten: Rewrite, root: nn.Module) -> int:
        """Run every module that changed and compare.

        Args:
            grafted: What was done to the modules.
            rewritten: What was changed.
            root: The changed root of the part.

        Returns:
            How many could not be compared.

        Raises:
            MismatchError: If one returns something else.
        """
        skipped = 0
        for call in self._closed(grafted, rewritten):
            module = fetch(root, call.path)
            if call not in self.samples or not may_run(module):
                skipped += 1
                continue
            sample, exact = self.samples[call], self._weights(call, rewritten)
            try:
                error = module_error(module, sample, exact)
            except Exception as problem:  # the new code does not run
                reason = f"its new code raises {type(problem).__name__}: {problem}"
                raise MismatchError(f"{call.path or 'the model'}: {reason}", [call]) from problem
            if not error <= MODULE_BOUND:
                if is_chaotic(module, sample, exact):
                    skipped += 1
                    continue
                reason = f"with its new code it returns something else, by {error:.1e}"
                raise MismatchError(f"{call.path or 'the model'}: {reason}", [call])
        return skipped

    def _closed(self, grafted: Grafted, rewritten: Rewrite) -> set[Call]:
        """The modules that regions lie in, but for those that a region outside changes too."""
        homes = {value: grafted.home(frame) for value, frame in self.frames.items()}
        closed = set(homes.values())
        for region in self.regions:
            nodes = [region.value, *region.dying]
            touched = {self.part.trace.caller[node] for node in nodes}
            # What nobody reads may be another value than it was.
            inner_values = (region.dying | {region.value}) - {region.kept}
            closed = {
                call
                for call in closed
                if inner_values.isdisjoint(nodes_in((call.args, call.kwargs, call.result)))
            }
            for call in touched | rewritten.changes[region.value]:
                for inner in call.ancestry():
                    if inner is homes[region.value]:
                        break
                    closed.discard(inner)
        return closed

    def _weights(self, call: Call, rewritten: Rewrite) -> dict[str, Tensor]:
        """The new weights inside a module before they were rounded."""
        prefix = f"{call.path}." if call.path else ""
        exact: dict[str, Tensor] = {}
        for region in self.regions:
            path, form = rewritten.names[region.value], region.form
            if path.startswith(prefix):
                device = None if form.like is None else form.like.device
                module = lower(form, *form.weights.evaluate(device))
                for name, parameter in module.named_parameters():
                    exact[f"{path[len(prefix) :]}.{name}"] = parameter
        return exact
