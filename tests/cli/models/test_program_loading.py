"""Exported programs are read, and those that would run code are not."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reparam.cli.models.program_checks import is_size
from reparam.cli.models.program_loading import load_program
from reparam.errors import ReparamError
from tests.cli.networks import small


@pytest.fixture(scope="module")
def archive() -> bytes:
    torch.manual_seed(0)
    program = torch.export.export(
        small().eval(),
        (torch.randn(2, 3, 8, 8),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},),
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def rewritten(archive: bytes, change: Callable[[dict[str, bytes]], object]) -> bytes:
    """The archive with other entries."""
    with zipfile.ZipFile(io.BytesIO(archive)) as read:
        top = read.namelist()[0].partition("/")[0]
        entries = {name.partition("/")[2]: read.read(name) for name in read.namelist()}
    change(entries)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as write:
        for name, content in entries.items():
            write.writestr(f"{top}/{name}", content)
    return buffer.getvalue()


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ReparamError) as caught:
        load_program(path)
    return str(caught.value)


def test_a_program_of_any_size_is_read(archive: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pt2"
    path.write_bytes(archive)
    program = load_program(path)
    assert program.module()(torch.randn(5, 3, 8, 8)).shape == (5, 4, 6, 6)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    path.write_bytes(rewritten(archive, lambda entries: None))
    load_program(path)


def test_it_is_planned_on_what_it_was_recorded_with(run, archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(archive)
    assert run("plan a.pt2 --json").values["operators"] == {"before": 4, "after": 2}
    assert run("verify a.pt2 --json").values["equal"]
    assert run("bench a.pt2 --rounds 2 --json").values["inputs"] == [[2, 3, 8, 8]]
    run("fuse a.pt2 -o b.pt2")
    fused, original = load_program(tmp_path / "b.pt2"), load_program(tmp_path / "a.pt2")
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(fused.module()(x), original.module()(x))
    run("fuse a.pt2 -o b.onnx")
    run("fuse a.pt2 -o b.safetensors")
    assert "takes no --arg" in run("plan a.pt2 --arg a=1", code=1).err
    assert "leave --float64 out" in run("verify a.pt2 --float64", code=1).err


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive at all" * 100])
def test_no_archive(tmp_path: Path, content: bytes) -> None:
    assert "no program that torch.export.save wrote" in refusal(tmp_path / "a.pt2", content)


def test_an_error_is_one_line_without_the_log_of_pytorch(run, tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(b"nothing")
    error = run("plan a.pt2", code=1).err
    assert error.startswith("Error: a.pt2 is damaged")
    assert error.count("\n") == 1


def test_another_archive(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    assert "holds no program" in refusal(tmp_path / "a.pt2", content)


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save(Attack(), buffer)
    return buffer.getvalue()


def configure(entries: dict[str, bytes], kind: str, payload: dict[str, Any]) -> None:
    name = f"data/{kind}/model_{kind}_config.json"
    config = json.loads(entries[name])
    if kind == "weights":
        next(iter(config["config"].values())).update(payload)
    else:
        config["config"]["attack"] = {"is_param": False, "tensor_meta": None, **payload}
    entries[name] = json.dumps(config).encode()
    entries[f"data/{kind}/{payload['path_name']}"] = pickled()


def pickled_weight(entries: dict[str, bytes]) -> None:
    configure(entries, "weights", {"path_name": "weight_0", "use_pickle": True})


def pickled_constant(entries: dict[str, bytes]) -> None:
    configure(entries, "constants", {"path_name": "opaque_obj_0", "use_pickle": False})


def library(entries: dict[str, bytes]) -> None:
    entries["data/aotinductor/model/model.so"] = b"code"


def size(entries: dict[str, bytes]) -> None:
    text = entries["models/model.json"].decode()
    start = text.index('"expr_str": "') + len('"expr_str": "')
    end = text.index('"', start)
    attack = "__import__('os').mkdir('executed')"
    entries["models/model.json"] = (text[:start] + attack + text[end:]).encode()


def in_program(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, bytes]], None]:
    """An attack that changes what an archive says of its program."""

    def attack(entries: dict[str, bytes]) -> None:
        program = json.loads(entries["models/model.json"])
        change(program)
        entries["models/model.json"] = json.dumps(program).encode()

    return attack


def nodes(program: dict[str, Any]) -> list[dict[str, Any]]:
    graph = program["graph_module"]["graph"]
    return list(graph["nodes"])


def signature(program: dict[str, Any]) -> dict[str, Any]:
    calls = program["graph_module"]["module_call_graph"]
    return dict(calls[0])["signature"]


def call(name: str, **inputs: Any) -> Callable[[dict[str, Any]], object]:
    given = [{"name": name, "arg": arg, "kind": 1} for name, arg in inputs.items()]

    def change(program: dict[str, Any]) -> None:
        nodes(program)[0].update(target=name, inputs=given)

    return change


def structure(kind: str, context: Any) -> str:
    spec = {"type": kind, "context": context, "children_spec": []}
    return json.dumps([1, spec])


def sizes(expression: str) -> Callable[[dict[str, Any]], object]:
    def change(program: dict[str, Any]) -> None:
        held = program["graph_module"]["graph"]["tensor_values"]
        entry = next(v for v in held.values() if v["sizes"] and "as_expr" in v["sizes"][0])
        entry["sizes"][0]["as_expr"]["expr_str"] = expression

    return change


def long_chain(program: dict[str, Any]) -> None:
    """A number that is multiplied by itself, again and again."""
    value: dict[str, Any] = {"as_int": 9**9}
    for index in range(99):
        given = [{"name": name, "arg": value, "kind": 1} for name in "ab"]
        made = {"as_sym_int": {"as_name": f"n{index}"}}
        node = {"target": "_operator.mul", "inputs": given, "outputs": [made], "metadata": {}}
        program["graph_module"]["graph"]["nodes"].insert(index, node)
        value = made


EXECUTES = "__import__('os').mkdir('executed')"
FACTORY = {"default_factory_module": "executed", "default_factory_name": "a", "dict_context": []}

ATTACKS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a file as memory": call(
        "torch.ops.aten.from_file.default",
        filename={"as_string": "executed"}, shared={"as_bool": True}, size={"as_int": 9},
    ),
    "a file as memory of another": call(
        "torch.ops.aten.from_file.out", filename={"as_string": "executed"}
    ),
    "a function of Python": call("torch.os.mkdir", path={"as_string": "executed"}),
    "a function of torch": call("torch.load", f={"as_string": "executed"}),
    "a function with a seed": call("torch.ops.aten.manual_seed.default", seed={"as_int": 0}),
    "an operator of somebody": call("torch.ops.somebody.operator.default"),
    "an operator that is handed on": call(
        "torch.ops.higher_order.cond", op={"as_operator": "torch.os.mkdir"}
    ),
    "a guard": lambda program: program.update(guards_code=[EXECUTES]),
    "a guard that leaves its text": lambda program: program.update(
        guards_code=[f"L['a\", {EXECUTES}, \"'] == 3"]
    ),
    "a module of an enum": lambda program: signature(program).update(
        in_spec=structure("builtins.dict", '[{"__enum__": true, "fqn": "executed:A", "name": "a"}]')
    ),
    "a module of a factory": lambda program: signature(program).update(
        in_spec=structure("collections.defaultdict", FACTORY)
    ),
    "a name of an argument": lambda program: signature(program).update(
        forward_arg_names=[f"x={EXECUTES}"]
    ),
    "a name of a value": lambda program: nodes(program)[0].update(name=f"x={EXECUTES}"),
    "a name of an input": lambda program: program["graph_module"]["graph"]["inputs"][0].update(
        as_tensor={"name": f"x={EXECUTES}"}
    ),
    "a name of a parameter": lambda program: program["graph_module"]["signature"]["input_specs"][
        0
    ]["parameter"].update(parameter_name=f'a" + {EXECUTES} + "'),
    "a huge size": sizes("9**9**9**9"),
    "a power of a power": sizes("((((9**64)**64)**64)**64)"),
    "a factorial": sizes("factorial(10**9)"),
    "a long expression": sizes("+".join(["s0"] * 10**4)),
    "a huge number": lambda program: program["range_constraints"].update(
        s1={"min_val": 0, "max_val": 10**4000}
    ),
    "a chain of products": long_chain,
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_no_computation_on_tensors_is_refused(
    name: str, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is code run, nor a file touched, nor a module imported, nor does it take long."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "executed.py").write_text("open('executed', 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    message = refusal(tmp_path / "a.pt2", rewritten(archive, in_program(ATTACKS[name])))
    assert "would run code of its own" in message
    assert not (tmp_path / "executed").exists()


def test_json_without_an_end_is_refused(archive: bytes, tmp_path: Path) -> None:
    def deep(entries: dict[str, bytes]) -> None:
        entries["models/model.json"] = b"[" * 10**6

    def long_number(entries: dict[str, bytes]) -> None:
        entries["models/model.json"] = b'{"a": ' + b"9" * 10**6 + b"}"

    for attack in (deep, long_number):
        assert "is damaged" in refusal(tmp_path / "a.pt2", rewritten(archive, attack))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a/models/model.json", b" " * 10**7 + b"{}")
    assert "compressed" in refusal(tmp_path / "a.pt2", buffer.getvalue())


class Sizes(torch.nn.Module):
    """What an ordinary program may say: control flow, containers, sizes, guards, odd names."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleDict({"a b-1": torch.nn.Conv2d(3, 8, 3), "2->3": small()})
        self.table = torch.nn.Embedding(5, 8)
        self.register_buffer("rows", torch.arange(4))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        torch._check(x.shape[1] % 3 == 0)
        count = x.shape[2] // 2
        z = torch.nn.functional.gelu(self.parts["a b-1"](x), approximate="tanh")
        z = torch.nn.functional.interpolate(z, scale_factor=2, mode="bilinear")
        rows = torch.einsum("bchw,rc->brhw", z, self.table(self.rows))
        ones = torch.ones(z.shape[2]) + torch.div(
            torch.arange(z.shape[2]), 3, rounding_mode="floor"
        )
        picked = torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))
        return rows, {"a": y.shape[0] ** 2 * y, "b": [x[:, :, :count], picked, ones]}


@pytest.mark.parametrize("decomposed", [False, True])
def test_an_ordinary_program_of_many_operators_is_read(decomposed: bool, tmp_path: Path) -> None:
    model, auto = Sizes().eval(), torch.export.Dim.AUTO
    inputs = torch.randn(4, 3, 8, 8), torch.randn(16)
    program = torch.export.export(model, inputs, dynamic_shapes=({0: auto, 2: auto}, {0: auto}))
    program = program.run_decompositions() if decomposed else program
    torch.export.save(program, tmp_path / "a.pt2")
    read = load_program(tmp_path / "a.pt2")
    assert read._guards_code == program._guards_code
    torch.testing.assert_close(read.module()(*inputs), model(*inputs))


@pytest.mark.parametrize("attack", [pickled_weight, pickled_constant, library, size])
def test_code_in_an_archive_is_refused_and_not_executed(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: Callable[..., object]
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(tmp_path / "a.pt2", rewritten(archive, attack))
    assert "would run code of its own" in message
    assert not (tmp_path / "executed").exists()


def test_pickled_inputs_are_not_executed(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def attack(entries: dict[str, bytes]) -> None:
        entries["data/sample_inputs/model.pt"] = pickled()

    assert "cannot be read" in refusal(tmp_path / "a.pt2", rewritten(archive, attack))
    assert not (tmp_path / "executed").exists()


def test_names_that_clash_are_refused(archive: bytes, tmp_path: Path) -> None:
    def twice(entries: dict[str, bytes]) -> None:
        entries["Models/model.json"] = entries["models/model.json"]

    assert "names in it clash" in refusal(tmp_path / "a.pt2", rewritten(archive, twice))


@pytest.mark.parametrize(
    ("expression", "fits"),
    [
        ("Symbol('s31', positive=True, integer=True)", True),
        ("2*s0 + 1", True),
        ("FloorDiv(s0 - 1, 2)", True),
        ("Max(1, s0) < 4", True),
        ("__import__('os')", False),
        ("eval(chr(49))", False),
        ("Symbol('s0').func", False),
        ("sympify('1')", False),
        ("s0.__class__", False),
        ("[s0 for s0 in s1]", False),
        ("(lambda: s0)()", False),
        ("Symbol('open')", False),
        ("1 +", False),
        ("(" * 1000, False),
        ("Pow(Symbol('s0', positive=True, integer=True), Integer(2))", True),
        ("Add(Symbol('s77'), Max(Integer(2), FloorDiv(Symbol('s53'), Integer(2))))", True),
        ("2**s0", False),
        ("Pow(9, Pow(9, 9))", False),
        ("fibonacci(s0)", False),
    ],
)
def test_sizes_are_arithmetic(expression: str, fits: bool) -> None:
    assert is_size(expression) == fits
