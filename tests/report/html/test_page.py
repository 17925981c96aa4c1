"""The page of a plan: all of it is in one file, and nothing in it is taken for code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reparam
from repvgg import RepVGG, RepVGGConfig
from tests.support import small_repvgg
from tests.support.randomise import randomise_batch_norm

VOID = {"meta", "link", "input", "br", "img", "rect", "path"}


class Read(HTMLParser):
    """All elements with their attributes, all text, and whether every element is closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.words.append(data)

    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def attributes(self, name: str) -> list[str]:
        return [value for _, given in self.elements if (value := given.get(name)) is not None]


def graphs(read: Read) -> dict[str, Any]:
    """What the script draws."""
    found: dict[str, Any] = json.loads(read.scripts[0])
    return found


def regions(read: Read, side: str) -> list[int]:
    """The region of each operator of a graph that is in one."""
    return [number for _, _, _, number, *_ in graphs(read)[side] if number]


def written(model: Any, tmp_path: Path, *, verify: bool = True, **options: Any) -> str:
    path = tmp_path / "plan.html"
    reparam.plan(model, **options).to_html(path, verify=verify)
    return path.read_text(encoding="utf-8")


def pair() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    return randomise_batch_norm(nn.Sequential(*layers).eval(), seed=0)


def assert_sound(source: str) -> Read:
    """It is well-formed, loads nothing, and runs nothing but one script."""
    read = Read(source)
    assert not read.open
    tags = [tag for tag, _ in read.elements]
    scripts = [given.get("type") for tag, given in read.elements if tag == "script"]
    assert scripts == ["application/json", None], "the graphs, which are data, and one script"
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(tags)
    assert not read.attributes("src")
    assert all(address.startswith("#") for address in read.attributes("href"))
    assert not [name for _, given in read.elements for name in given if name.startswith("on")]
    assert not read.attributes("style")
    style = re.search(r"<style>(.*?)</style>", source, re.DOTALL)
    assert style is not None
    assert set(re.findall(r"url\((.*?)\)", source)) <= {"#arrow"}
    assert "@import" not in style[1]
    assert "default-src 'none'" in source
    ids = read.attributes("id")
    assert len(ids) == len(set(ids))
    named = [one for name in ("aria-controls", "aria-labelledby") for one in read.attributes(name)]
    assert set(named) <= set(ids)
    assert {address[1:] for address in read.attributes("href")} <= set(ids)
    return read


def test_a_convolution_and_its_norm(tmp_path: Path) -> None:
    read = assert_sound(written(pair(), tmp_path))
    text = read.text()
    assert "Sequential: 2 operators become 1, in 1 place; refused: 0" in text
    assert "v = K0 → 1 ⋆ x + c" in text
    assert "Conv2d + BatchNorm2d become conv 3x3, 3 → 8" in text
    assert "verified in float64 on a random input" in text
    assert "Nothing was refused." in text
    (kernel,) = {heat for heat in read.attributes("data-heat") if heat.count("/") == 2}
    assert re.fullmatch(r"[0-9a-f]{3}(/[0-9a-f]{3}){2}", kernel) is not None


def test_all_branches_of_a_network(tmp_path: Path) -> None:
    model = small_repvgg.build("plain")
    plan = reparam.plan(model)
    plan.to_html(tmp_path / "plan.html")
    read = assert_sound((tmp_path / "plan.html").read_text(encoding="utf-8"))
    text = read.text()
    assert "v = Krbr_dense ⋆ x + Krbr_1x1 ⋆ x + Krbr_identity ⋆ x + c" in text
    for row in plan.fused:
        assert row.place in text
    numbers = list(range(1, len(plan.fused) + 1))
    before, after = (regions(read, side) for side in ("before", "after"))
    assert sorted(set(before)) == after == numbers, "one operator each afterwards"


def test_without_verification_it_says_so(tmp_path: Path) -> None:
    text = Read(written(pair(), tmp_path, verify=False)).text()
    assert "not verified" in text
    assert "verified in float64" not in text


def test_with_example_inputs(tmp_path: Path) -> None:
    assert_sound(written(pair(), tmp_path, example_inputs=torch.randn(1, 3, 8, 8)))


HOSTILE = '<script>alert("x")</script><!--'


class Named(nn.Sequential):
    pass


Named.__name__ = f"Net{HOSTILE}"


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    model = Named()
    model.add_module(HOSTILE, nn.Conv2d(3, 8, 3))
    model.add_module("\" onload='alert(1)'", nn.BatchNorm2d(8))
    model.add_module("</script></title></style>]]>", nn.ReLU())
    model.add_module("{{ 7 * 7 }}", nn.BatchNorm2d(8))
    source = written(model.eval(), tmp_path)
    text = assert_sound(source).text()
    assert HOSTILE not in source
    assert f"Net{HOSTILE}" in graphs(Read(source))["texts"]
    assert f"Net{HOSTILE}" in text
    assert "onload='alert(1)'" in text
    assert "{{ 7 * 7 }}" in text


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = pair(), pair()

    def forward(self, x: Tensor) -> Tensor:
        while x.sum() > 0:
            return self.first(x)
        return self.second(x)


def test_a_model_in_parts(tmp_path: Path) -> None:
    read = assert_sound(written(nn.Sequential(Untraceable()).eval(), tmp_path))
    text = read.text()
    assert "0.first" in text
    assert "0.second" in text
    assert set(regions(read, "before")) == set(regions(read, "after")) == {1, 2}
    parts = [block for block in graphs(read)["blocks"] if block[2] == 0]
    assert len(parts) == 3, "the model around them is a part, too"
    assert "its forward cannot be traced" in text


def test_an_exported_program(tmp_path: Path) -> None:
    program = torch.export.export(pair(), (torch.randn(1, 3, 8, 8),))
    text = assert_sound(written(program, tmp_path)).text()
    assert "ExportedProgram: 2 operators become 1" in text
    assert "⋆ x + c" in text


def test_where_nothing_becomes_one_operator(tmp_path: Path) -> None:
    text = assert_sound(
        written(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)).eval(), tmp_path)
    ).text()
    assert "Nothing becomes one operator." in text
    assert "it follows" in text


def test_a_model_without_anything(tmp_path: Path) -> None:
    assert_sound(written(nn.Identity().eval(), tmp_path))


def test_weights_on_the_meta_device(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    text = assert_sound(written(model, tmp_path)).text()
    assert "not verified: the weights are on the meta device" in text


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = pair()
    with torch.no_grad():
        model.get_parameter("0.weight")[0] = float("nan")
    text = assert_sound(written(model, tmp_path)).text()
    assert "a weight is NaN or infinite" in text


def test_a_wrong_rule_is_seen(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    def wrong(module: nn.Module, x: Any) -> Any:
        del module
        return x.scale(3)

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Twice()).eval()
    text = Read(written(model, tmp_path, rules={Twice: wrong})).text()
    assert "it differs: it will be left alone" in text


def test_a_plan_that_was_applied_has_the_same_page(tmp_path: Path) -> None:
    plan = reparam.plan(pair())
    plan.apply()
    plan.to_html(tmp_path / "plan.html")
    assert "K<sub>0 → 1</sub>" in (tmp_path / "plan.html").read_text(encoding="utf-8")
    plan.to_html(tmp_path / "again.html")
    pages = [(tmp_path / name).read_text(encoding="utf-8") for name in ("plan.html", "again.html")]
    assert pages[0] == pages[1]
    assert len(plan.apply().reparam_report.fused) == 1


def test_a_network_of_a_thousand_operators_stays_small(tmp_path: Path) -> None:
    model = RepVGG(RepVGGConfig((40, 40, 40, 6), (8, 8, 8, 8, 8)), num_classes=5).eval()
    plan = reparam.plan(randomise_batch_norm(model, seed=0))
    assert sum(len(planned.part.trace.graph.nodes) for planned in plan._parts) > 1000
    plan.to_html(tmp_path / "plan.html")
    assert (tmp_path / "plan.html").stat().st_size < 2_000_000


def test_a_network_of_a_thousand_operators_that_stay_stays_small(tmp_path: Path) -> None:
    class Concatenating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(250))
            self.layers = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(250))

        def forward(self, x: Tensor) -> Tensor:
            for norm, layer in zip(self.norms, self.layers, strict=True):
                x = layer(torch.cat([x, norm(x).relu()], 1))
            return x

    plan = reparam.plan(Concatenating().eval())
    plan.to_html(tmp_path / "plan.html")
    assert (tmp_path / "plan.html").stat().st_size < 2_000_000


def test_a_page_grows_with_the_operators(tmp_path: Path) -> None:
    def size(pairs: int) -> int:
        kinds = [(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU()) for _ in range(pairs)]
        chain = nn.Sequential(*[layer for layers in kinds for layer in layers])
        return len(written(chain.eval(), tmp_path))

    few, more, most = size(20), size(60), size(140)
    assert most - more < 2.1 * (more - few), "for twice as many operators more"


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    missing = "jinja2"
    script = (
        "import sys, torch, reparam\n"
        f"sys.modules[{missing!r}] = None\n"
        "try:\n"
        "    reparam.plan(torch.nn.Identity().eval()).to_html('plan.html')\n"
        "except reparam.ReparamError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert missing in result.stdout
    assert "pip install 'reparam[html]'" in result.stdout
    assert not (tmp_path / "plan.html").exists()
