"""The documentation builds without a warning, its links lead somewhere, and a browser shows it."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import needs_browser, open_browser
from tests.support.site import broken_links, build, read

pytest.importorskip("mkdocs", reason="the documentation needs the extra docs")
pytest.importorskip("mkdocstrings", reason="the documentation needs the extra docs")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("site").resolve())


def test_every_link_of_every_page_leads_somewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    assert sum(len(read(page).links) for page in pages) > 500
    assert broken_links(site) == []


def test_every_page_is_in_the_menu(site: Path) -> None:
    """A page that nobody can reach is missing there."""
    written = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    home = read(site / "index.html")
    for path in written:
        address = "." if path.name == "index.md" else f"{path.with_suffix('').as_posix()}/"
        assert address in home.links, path


def test_what_the_build_adds_is_there(site: Path) -> None:
    laws = (site / "how-it-works" / "index.html").read_text(encoding="utf-8")
    assert laws.count('<svg xmlns="http://www.w3.org/2000/svg" viewBox') >= 7
    assert "<!-- figure" not in laws
    tour = (site / "code-tour" / "index.html").read_text(encoding="utf-8")
    assert "<code>algebra/axis_composition.py</code>" in tour
    assert not [path for path in site.rglob("*") if path.suffix in (".py", ".pyc")]


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("missing/", "leads to no file"),
        ("../../outside.html", "leads to no file"),
        ("#nowhere", "names no place on its page"),
        ("other.html#nowhere", "names no place on its page"),
        ("https:///path", "names no host"),
        ("https://[", "Invalid IPv6 URL"),
        ("https://a.org/a b", "holds a blank"),
        ("javascript:void(0)", "is neither internal nor of the web"),
        ("#here", None),
        ("other.html#there", None),
        ("https://a.org/#any", None),
        ("mailto:a@b.org", None),
    ],
)
def test_a_broken_link_is_found(link: str, said: str | None, tmp_path: Path) -> None:
    (tmp_path / "outside.html").touch()
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text(f'<h1 id="here">x</h1><a href="{link}">y</a>')
    (site / "other.html").write_text('<h1 id="there">x</h1>')
    found = broken_links(site)
    assert found == ([] if said is None else [f"index.html: {link!r} {said}"])


# -- In a browser ---------------------------------------------------------------------------------


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Where the site is served: search, for one, does not work on files."""
    handler = functools.partial(_Silent, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.corpus
@needs_browser
def test_every_page_opens_in_a_browser(site: Path, address: str) -> None:
    """Without an error, a failed load or anything from elsewhere, light and dark."""
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("index.html"))
    with open_browser() as page:
        for scheme in ("light", "dark"):
            page.prefer(scheme)
            for path in pages:
                page.open(f"{address}/{path.removesuffix('index.html')}")
                assert page.text("h1")
                assert not page.problems, (path, page.problems)
        assert len(pages) > 15
        assert not [one for one in page.requests if not one.startswith((address, "data:"))]


@pytest.mark.corpus
@needs_browser
def test_figures_are_readable_light_and_dark(address: str) -> None:
    """What is written in a figure stands out from its page by a ratio of at least 4.5 (WCAG)."""
    shades = []
    with open_browser() as page:
        for scheme in ("light", "dark"):
            page.prefer(scheme)
            page.open(f"{address}/how-it-works/")
            assert page.run("document.querySelectorAll('figure.law svg').length") >= 7
            page_shade, *texts = page.run(
                """(() => {
                    const pen = document.createElement('canvas').getContext('2d');
                    const shade = (colours) => {
                        pen.clearRect(0, 0, 1, 1);
                        for (const colour of colours) {
                            pen.fillStyle = colour;
                            pen.fillRect(0, 0, 1, 1);
                        }
                        return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
                    };
                    const paper = getComputedStyle(document.body).backgroundColor;
                    const kinds = ['value', 'name', 'sign', 'refused'];
                    const fill = (kind) =>
                        getComputedStyle(document.querySelector(`.law text.${kind}`)).fill;
                    return [shade([paper]), ...kinds.map((kind) => shade([paper, fill(kind)]))];
                })()"""
            )
            shades.append(page_shade)
            assert min(_contrast(page_shade, text) for text in texts) >= 4.5
        assert not page.problems
    assert sum(shades[0]) > 600 > 200 > sum(shades[1]), "a light page and a dark one"


def _contrast(first: list[int], second: list[int]) -> float:
    def light(colour: list[int]) -> float:
        parts = [value / 255 for value in colour]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, bright = sorted((light(first), light(second)))
    return (bright + 0.05) / (dark + 0.05)
