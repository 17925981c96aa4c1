"""An exported program read as a module with a flat graph."""

from __future__ import annotations

from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec

STATE_KINDS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def as_module(program: ExportedProgram) -> nn.Module:
    """A module that runs a program, on inputs of any type that its operators take."""
    return program.module(check_guards=False)


def read_program(program: ExportedProgram) -> tuple[nn.Module, fx.Graph]:
    """A module that holds what a program reads, and a copy of its graph that reads it there."""
    root = nn.Module()
    for name, submodule in program.graph_module.named_children():
        root.add_module(name, submodule)  # the branches of control flow
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    lifted = lifted_state(program)
    tensors = {**program.constants, **program.state_dict}
    # A program must go on having the arguments and the results of calls that it preserves.
    signatures = [call.signature for call in program.module_call_graph if call.signature]
    kept = {value.name for call in signatures for value in (*call.inputs, *call.outputs)}
    for node in program.graph.nodes:
        if node.name in lifted:
            target = str(lifted[node.name].target)
            _register(root, target, tensors[target])
            values[node] = graph.get_attr(target)
            values[node].name = node.name
            values[node].meta = dict(node.meta)
        elif node.op == "output":
            results = fx.map_arg(node.args[0], values.__getitem__)
            named = [values[inner] for inner in values if inner.name in kept]
            graph.output((results, named))
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
            values[node].name = node.name
    return root, graph


def lifted_state(program: ExportedProgram) -> dict[str, InputSpec]:
    """The inputs of a program's graph that are parameters, or buffers that it does not change."""
    signature = program.graph_signature
    changed = {spec.target for spec in signature.output_specs if spec.target is not None}
    return {
        spec.arg.name: spec
        for spec in signature.input_specs
        if spec.kind in STATE_KINDS and spec.target not in changed
    }


def _register(root: nn.Module, path: str, tensor: Tensor) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(name, tensor)
    else:
        root.register_buffer(name, tensor)
