"""Exported programs and graph modules: fused, each gives its own kind."""

import copy
import io
import operator
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind

import reparam
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run
from tests.support.randomise import randomise_batch_norm
from tests.uses.networks import fused_network

EXACT = 1e-9


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def ready(model: nn.Module) -> nn.Module:
    return randomise_batch_norm(model.double().eval(), 0)


def images(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def core(program: ExportedProgram) -> ExportedProgram:
    return program.run_decompositions()


def loaded(program: ExportedProgram) -> ExportedProgram:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer)


def assert_sound(program: ExportedProgram) -> None:
    """The signature, the state and the graph name the same things."""
    program.validate()
    specs = program.graph_signature.input_specs
    placeholders = program.graph.find_nodes(op="placeholder")
    assert [spec.arg.name for spec in specs] == [node.name for node in placeholders]
    held = {spec.target for spec in specs if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)}
    assert held <= {*program.state_dict} | {*program.constants}
    assert {*program.state_dict} <= held


DIALECTS = {"training": lambda program: program, "core": core, "loaded": loaded}

QUICK = {
    ("repvgg", "lenient", "dynamic", "training"), ("repvgg", "strict", "fixed", "core"),
    ("resnet", "lenient", "fixed", "loaded"), ("resnet", "strict", "dynamic", "training"),
}  # fmt: skip
"""Each value of each parameter; `pytest -m corpus` takes all others."""


@pytest.mark.parametrize(
    ("name", "strictness", "sizes", "dialect"),
    [
        pytest.param(*values, marks=() if values in QUICK else pytest.mark.corpus)
        for values in product(
            ["repvgg", "resnet"], ["lenient", "strict"], ["fixed", "dynamic"], DIALECTS
        )
    ],
)
def test_a_program_gives_a_program(name: str, strictness: str, sizes: str, dialect: str) -> None:
    strict, dynamic = strictness == "strict", sizes == "dynamic"
    case = fused_network(name)
    model, x = case.model.double(), case.x.double()
    shapes = ({0: Dim("batch", min=2, max=64)},) if dynamic else None
    program = DIALECTS[dialect](export(model, (x,), strict=strict, dynamic_shapes=shapes))
    text, state = str(program), dict(program.state_dict)
    fused = reparam.fuse(program)
    assert str(program) == text
    assert all(program.state_dict[key] is state[key] for key in state)
    assert isinstance(fused, ExportedProgram)
    assert fused.dialect == program.dialect
    assert fused.reparam_report.fused
    assert_sound(fused)
    assert str(fused.range_constraints) == str(program.range_constraints)
    assert fused.call_spec == program.call_spec
    x = torch.cat((x, x + 1, x)) if dynamic else x
    expected = run(model, (x,))
    for again in (fused, loaded(fused), core(fused)):
        assert relative_error(run(again.module(), (x,)), expected) <= EXACT
    whole = count_operators(reparam.fuse(model), (x,))
    counts = count_operators(fused.module(), (x,))
    assert counts.batch_norms == 0
    assert counts.macs <= whole.macs
    assert counts.convolutions <= whole.convolutions
    if dynamic:
        with pytest.raises(AssertionError, match="<="):
            fused.module()(images(65, 3, 64, 64))


@pytest.mark.parametrize("dialect", [lambda p: p, core], ids=["training", "core"])
def test_a_graph_module_of_a_program_gives_a_graph_module(
    dialect: Callable[[ExportedProgram], ExportedProgram],
) -> None:
    case = fused_network("resnet")
    model, x = case.model.double(), case.x.double()
    module = dialect(export(model, (x,))).module()
    fused = reparam.fuse(module)
    assert isinstance(fused, fx.GraphModule)
    assert fused.graph._codegen.pytree_info == module.graph._codegen.pytree_info
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).batch_norms == 0
    assert not [name for name in fused.state_dict() if "running" in name]
    with pytest.raises(AssertionError):
        fused(images(3, 3, 64, 64))


class Structured(nn.Module):
    """Arguments and results in containers, an optional argument, tied weights and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.tied = nn.Conv2d(4, 4, 3, padding=1)
        self.tied.weight = self.conv.weight
        self.linear = nn.Linear(4, 5)
        self.register_buffer("scale", torch.ones(4, 1, 1))
        self.register_buffer("unread", torch.ones(3))
        self.register_buffer("passing", torch.rand(4, 1, 1), persistent=False)

    def forward(
        self, pair: dict[str, Tensor], *, factor: Tensor | None = None
    ) -> dict[str, list[Tensor]]:
        x = self.norm(self.conv(pair["x"])) + self.tied(pair["y"])
        x = F.relu(x) * self.scale + self.passing
        if factor is not None:
            x = x * factor
        return {"out": [self.linear(x.mean((2, 3)) * 2), x]}


@pytest.mark.parametrize("dialect", [lambda p: p, core], ids=["training", "core"])
def test_structures_and_state(dialect: Callable[[ExportedProgram], ExportedProgram]) -> None:
    model = ready(Structured())
    args = ({"x": images(2, 4, 6, 6), "y": images(2, 4, 6, 6) + 1},)
    kwargs = {"factor": images(1)}
    program = dialect(export(model, args, kwargs))
    fused = reparam.fuse(program)
    assert_sound(fused)
    for again in (fused, loaded(fused)):
        result, expected = again.module()(*args, **kwargs), model(*args, **kwargs)
        assert relative_error(result, expected) <= EXACT
    names = set(fused.state_dict)
    assert {"tied.weight", "unread"} <= names or {"conv.weight", "unread"} <= names
    assert not [name for name in names if name.startswith("norm.")]
    assert relative_error(
        reparam.fuse(program.module())(*args, **kwargs), model(*args, **kwargs)
    ) <= (EXACT)


class Counting(nn.Module):
    """Its buffer changes at every call, and enters the result."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("calls", torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.norm(self.conv(x)) * self.calls


@pytest.mark.parametrize("dialect", [lambda p: p, core], ids=["training", "core"])
def test_a_buffer_that_changes_goes_on_changing(
    dialect: Callable[[ExportedProgram], ExportedProgram],
) -> None:
    model, x = ready(Counting()), images(2, 3, 6, 6)
    program = dialect(export(copy.deepcopy(model), (x,)))
    fused = reparam.fuse(program)
    assert len(fused.reparam_report.fused) == 1
    assert_sound(fused)
    for module in (fused.module(), loaded(fused).module(), reparam.fuse(program.module())):
        reference = copy.deepcopy(model)
        for _ in range(3):
            assert relative_error(module(x), reference(x)) <= EXACT
    assert torch.equal(program.state_dict["calls"], torch.ones(4, 1, 1, dtype=torch.float64))


class Branching(nn.Module):
    """Control flow on data, as export writes it, and a part without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.inner = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        with torch.no_grad():
            y = self.norm(self.inner(x))
        return torch.cond(x.sum() > 0, self.inner, lambda a: a - 1, (x,)) + y


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("sign", [1, -1])
def test_control_flow_stays(sign: int) -> None:
    model, x = ready(Branching()), images(2, 3, 6, 6)
    program = export(model, (x,))
    fused = reparam.fuse(program)
    assert_sound(fused)
    x = sign * 10 * x.abs()
    for again in (fused, loaded(fused)):
        assert relative_error(run(again.module(), (x,)), run(model, (x,))) <= EXACT


class Padded(nn.Module):
    """An asymmetric padding, which the new convolution cannot do by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.after = nn.BatchNorm2d(4)
        self.circular = nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular")
        self.last = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(F.pad(x, (0, 1, 0, 1))))
        x = self.after(self.up(F.relu(x)))
        return self.last(self.circular(F.relu(x).flatten(2)))


@pytest.mark.parametrize("dialect", [lambda p: p, core], ids=["training", "core"])
def test_every_kind_of_convolution(
    dialect: Callable[[ExportedProgram], ExportedProgram],
) -> None:
    model, x = ready(Padded()), images(2, 3, 7, 6)
    fused = reparam.fuse(
        dialect(export(model, (x,), dynamic_shapes=({2: Dim("rows", min=4, max=64)},)))
    )
    assert_sound(fused)
    x = images(2, 3, 9, 6)
    for again in (fused, loaded(fused), core(fused)):
        assert relative_error(run(again.module(), (x,)), run(model, (x,))) <= EXACT
        assert count_operators(again.module(), (x,)).batch_norms == 0


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node with no underlying")
def test_preserved_calls_keep_their_values() -> None:
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)))
    x = images(2, 3, 6, 6)
    program = export(model, (x,), preserve_module_call_signature=("0",))
    fused = reparam.fuse(program)
    assert_sound(fused)
    unflattened = torch.export.unflatten(fused)
    assert relative_error(unflattened(x), model(x)) <= EXACT


def test_what_a_program_cannot_do() -> None:
    program = export(ready(Padded()), (images(2, 3, 7, 6),))
    with pytest.raises(reparam.ReparamError, match="cannot be changed in place"):
        reparam.fuse(program, inplace=True)
    with pytest.raises(reparam.ReparamError, match=r"a torch\.export\.ExportedProgram, found dict"):
        reparam.fuse({})  # type: ignore[type-var]


def test_a_program_without_anything_to_fuse() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).double().eval(), images(2, 3)
    fused: Any = reparam.fuse(export(model, (x,)))
    assert fused.reparam_report.fused == []
    assert_sound(fused)
    assert torch.equal(run(fused.module(), (x,)), run(model, (x,)))


def test_plan_and_verify_take_programs() -> None:
    case = fused_network("repvgg")
    program = export(case.model, (case.x,))
    plan = reparam.plan(program)
    assert len(plan.fused) == len(plan.apply().reparam_report.fused)
    again = plan.apply()
    assert again.reparam_report.fused == plan.apply().reparam_report.fused
    assert max(reparam.verify(program, again, case.x).fused) < 1e-5


def multiply(module: fx.GraphModule) -> fx.Node:
    return next(node for node in module.graph.nodes if node.target is operator.mul)


def test_symbolic_tracing_keeps_defaults_and_metadata() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: Tensor, factor: float = 2.0) -> Tensor:
            return torch.relu(self.norm(self.conv(x))) * factor

    model, x = fx.symbolic_trace(ready(Scaled())), images(2, 3, 6, 6)
    multiply(model).meta["mark"] = "mine"
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert relative_error(run(fused, (x, 3.0)), run(model, (x, 3.0))) <= EXACT
    assert multiply(fused).meta["mark"] == "mine"
    assert [node.name for node in fused.graph.nodes if node.op == "placeholder"] == ["x", "factor"]
