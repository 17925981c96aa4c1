"""An edited graph written down as an exported program again.

A program's graph names its parameters as inputs, and what each input is stands in a signature. When
it was read (`reparam.capture.programs`) they became attributes of a module; now those that are
still read become inputs again, and new ones join them. What torch.export knows besides, such as
the ranges of dynamic sizes and the structure of arguments and results, is taken over as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._guards import detect_fake_mode
from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram, ModuleCallEntry
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx.experimental.proxy_tensor import make_fx

from reparam.capture import STATE_KINDS, as_trace, lifted_state, read_program
from reparam.modules import run_function
from reparam.rewriting.changes import Rewrite, begun


def copy_program(program: ExportedProgram) -> ExportedProgram:
    """The same program, with memory of its own."""
    return rebuild(program, begun(as_trace(*read_program(program))))


def rebuild(program: ExportedProgram, rewrite: Rewrite) -> ExportedProgram:
    """Write an edited graph down as a program."""
    edited = rewrite.graph
    writer = _Writer(program, rewrite)
    state = _remaining_state(program, edited) + _new_state(program, rewrite)
    state.sort(key=lambda spec: STATE_KINDS.index(spec.kind))
    for spec in state:
        writer.place(spec)
    specs = state + writer.copy_inputs(edited)
    for node in edited.nodes:
        writer.write(node)
    return _program(program, rewrite, specs, writer)


def _remaining_state(program: ExportedProgram, edited: fx.Graph) -> list[InputSpec]:
    """The state that is left: what is read, and what nobody read before.

    What nobody read goes with what it belonged to, such as the counter of a batch norm.
    """
    lifted = lifted_state(program)
    now = {str(node.target) for node in edited.find_nodes(op="get_attr") if node.users}
    before, holders = _read_before(program), _dead_holders(program, now)
    return [
        spec
        for spec in lifted.values()
        if spec.target in now
        or (spec.target not in before and _holder(str(spec.target)) not in holders)
    ]


def _read_before(program: ExportedProgram) -> set[str]:
    used = {node.name for node in program.graph.nodes if node.users}
    return {str(spec.target) for name, spec in lifted_state(program).items() if name in used}


def _dead_holders(program: ExportedProgram, now: set[str]) -> set[str]:
    """The modules of which something was read, and nothing is any more."""
    dead = {_holder(name) for name in _read_before(program) - now}
    return dead - {_holder(name) for name in now} - {""}


def _holder(name: str) -> str:
    return name.rpartition(".")[0]


def _new_state(program: ExportedProgram, rewrite: Rewrite) -> list[InputSpec]:
    """The parameters of the new operators, and the statistics of those that are norms."""
    names = fx.graph._Namespace()
    for node in program.graph.nodes:
        names.create_name(node.name, None)
    specs: list[InputSpec] = []
    for path, module in rewrite.modules.items():
        for name, _ in module.named_parameters():
            target = f"{path}.{name}"
            argument = TensorArgument(names.create_name(f"p_{target}", None))
            specs.append(InputSpec(InputKind.PARAMETER, argument, target))
        for name, _ in module.named_buffers():
            target = f"{path}.{name}"
            argument = TensorArgument(names.create_name(f"b_{target}", None))
            specs.append(InputSpec(InputKind.BUFFER, argument, target, persistent=True))
    return specs


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a new operator by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _program(
    program: ExportedProgram, rewrite: Rewrite, specs: list[InputSpec], writer: _Writer
) -> ExportedProgram:
    left = {str(spec.target) for spec in specs}
    gone = {str(spec.target) for spec in lifted_state(program).values()} - left
    dead = _dead_holders(program, left)
    gone |= {name for name in program.state_dict if name not in left and _holder(name) in dead}
    state = {name: held for name, held in program.state_dict.items() if name not in gone}
    for path, module in rewrite.modules.items():
        state |= {f"{path}.{name}": tensor for name, tensor in _tensors(module).items()}
    signature = copy.deepcopy(program.graph_signature)
    signature.input_specs = specs
    names = writer.names()
    for spec in signature.output_specs:
        spec.arg.name = names.get(spec.arg.name, spec.arg.name)
    calls = [_renamed(entry, names) for entry in program.module_call_graph]
    root = fx.GraphModule(program.graph_module, writer.graph)
    root.meta.update(program.graph_module.meta)
    result = ExportedProgram(
        root=root,
        graph=root.graph,
        graph_signature=signature,
        state_dict=copy.deepcopy(state),
        range_constraints=copy.copy(program.range_constraints),
        module_call_graph=calls,
        example_inputs=program.example_inputs,
        constants={name: held for name, held in program.constants.items() if name not in gone},
        verifiers=program.verifiers,
    )
    result._guards_code = list(program._guards_code)
    return result


def _renamed(call: ModuleCallEntry, names: dict[str, str]) -> ModuleCallEntry:
    if call.signature is None:
        return replace(call)
    inputs, outputs = (
        [replace(argument, name=names.get(argument.name, argument.name)) for argument in arguments]
        for arguments in (call.signature.inputs, call.signature.outputs)
    )
    return replace(call, signature=replace(call.signature, inputs=inputs, outputs=outputs))


def _batch_norm(module: nn.Module, held: Mapping[str, Tensor], args: Sequence[Any]) -> Tensor:
    """A batch norm as core ATen writes it, which no decomposition of the module would give."""
    settings = getattr(module, "momentum", None) or 0.0, getattr(module, "eps", 0.0)
    names = "weight", "bias", "running_mean", "running_var"
    run = torch.ops.aten._native_batch_norm_legit_no_training.default
    result: Tensor = run(*args, *(held[name] for name in names), *settings)[0]
    return result


class _Writer:
    """Writes a graph in the operators of a program's dialect."""

    def __init__(self, program: ExportedProgram, rewrite: Rewrite) -> None:
        self.program = program
        self.rewrite = rewrite
        self.graph = fx.Graph()
        self.placed: dict[str, fx.Node] = {}
        self.values: dict[fx.Node, fx.Node] = {}
        self.metas = {node.name: node.meta for node in program.graph.nodes}
        training = program.dialect == "TRAINING"
        self.table: Any = None if training else torch.export.default_decompositions()
        fake = detect_fake_mode([meta.get("val") for meta in self.metas.values()])
        self.mode: FakeTensorMode = fake or FakeTensorMode()

    def place(self, spec: InputSpec) -> None:
        """Write an input that is state."""
        node = self.graph.placeholder(spec.arg.name)
        node.name = spec.arg.name
        if spec.arg.name in self.metas:
            node.meta = dict(self.metas[spec.arg.name])
        else:
            path, _, name = str(spec.target).rpartition(".")
            parameter = getattr(self.rewrite.modules[path], name)
            node.meta = {"val": self.mode.from_tensor(parameter, static_shapes=True)}
        self.placed[str(spec.target)] = node

    def copy_inputs(self, edited: fx.Graph) -> list[InputSpec]:
        """Write the other inputs."""
        specs = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        inputs = edited.find_nodes(op="placeholder")
        for node in inputs:
            self.values[node] = self.graph.node_copy(node)
            self.values[node].name = node.name
        return [specs[node.name] for node in inputs]

    def write(self, node: fx.Node) -> None:
        """Write one node of the edited graph."""
        if node.op == "placeholder" or (node.op == "get_attr" and not node.users):
            return
        if node.op == "output":
            written: Any = fx.map_arg(node.args[0], self.values.__getitem__)
            results, _ = written
            self.graph.output(results).meta = dict(node.meta)
        elif node.op == "get_attr" and str(node.target) in self.placed:
            self.values[node] = self.placed[str(node.target)]
        elif node in self.rewrite.origins:
            self.values[node] = self.graph.node_copy(node, self.values.__getitem__)
        else:
            self.values[node] = self._expanded(node)

    def names(self) -> dict[str, str]:
        """For each value of the program's graph that is left its name in the new one."""
        current = ((old, self.rewrite.current(old)) for old in self.rewrite.copies)
        return {old.name: self.values[new].name for old, new in current if new in self.values}

    def _expanded(self, node: fx.Node) -> fx.Node:
        """Write the ATen operators that a new node consists of."""
        operands = node.all_input_nodes
        module = self.rewrite.modules.get(str(node.target)) if node.op == "call_module" else None
        names = [] if module is None else list(_tensors(module))

        def run(*tensors: Any) -> Any:
            inputs = dict(zip(operands, tensors, strict=False))
            args, kwargs = fx.map_arg((node.args, node.kwargs), inputs.__getitem__)
            if module is None:
                return run_function(node, args, kwargs)
            weights = dict(zip(names, tensors[len(operands) :], strict=True))
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not training:
                return _batch_norm(module, weights, args)
            return torch.func.functional_call(module, weights, args, kwargs)

        placed = [self.values[operand] for operand in operands]
        placed += [self.placed[f"{node.target}.{name}"] for name in names]
        training = self.table is None
        sizes = self.mode.shape_env  # what the program knows of its dynamic sizes stays as it is
        guards = nullcontext() if sizes is None else sizes.suppress_guards()
        with self.mode, torch.no_grad(), guards:
            trace = make_fx(run, decomposition_table=self.table, pre_dispatch=training)
            traced = trace(*(value.meta["val"] for value in placed))
        inner = dict(zip(traced.graph.find_nodes(op="placeholder"), placed, strict=True))
        for aten in traced.graph.nodes:
            if aten.op == "call_function" and aten.users:
                inner[aten] = self.graph.node_copy(aten, inner.__getitem__)
                inner[aten].meta = {**node.meta, "val": aten.meta["val"]}
        result: fx.Node = inner[traced.graph.output_node().args[0]]
        if "val" in node.meta:
            result.meta["val"] = node.meta["val"]  # the same sizes, in the program's own words
        return result
