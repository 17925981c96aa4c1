"""The built documentation as a browser reads it: its pages, their anchors and their links."""

import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]

_ADDRESSES = {"a": "href", "area": "href", "link": "href", "img": "src", "script": "src"}


@dataclass
class Html:
    """What one page holds.

    Args:
        anchors: What a fragment may name.
        links: Where it leads to, and what it loads.
    """

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Html()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        for name in ("id", "name") if tag == "a" else ("id",):
            if given.get(name):
                self.page.anchors.add(str(given[name]))
        address = given.get(_ADDRESSES.get(tag, ""))
        if address is not None:
            self.page.links.append(address)


def read(path: Path) -> Html:
    """Reads one page."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader.page


def build(folder: Path) -> Path:
    """Builds the documentation into a folder; warnings are errors."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def broken_links(site: Path) -> list[str]:
    """Every link that leads nowhere: internal ones by file and anchor, others by their form."""
    pages = {path: read(path) for path in sorted(site.rglob("*.html"))}
    broken: list[str] = []
    for path, page in pages.items():
        for link in page.links:
            problem = _problem(link, path, pages, site)
            if problem is not None:
                broken.append(f"{path.relative_to(site)}: {link!r} {problem}")
    return broken


def _problem(link: str, page: Path, pages: dict[Path, Html], site: Path) -> str | None:
    try:
        parts = urlsplit(link)
    except ValueError as error:
        return str(error)
    if any(letter.isspace() for letter in link):
        return "holds a blank"
    if parts.scheme in ("http", "https"):
        return None if parts.hostname and "." in parts.hostname else "names no host"
    if parts.scheme == "mailto":
        return None if "@" in parts.path else "names no address"
    if parts.scheme or parts.netloc:
        return "is neither internal nor of the web"
    target = page
    if parts.path.startswith("/"):
        target = site / unquote(parts.path).lstrip("/")
    elif parts.path:
        target = (page.parent / unquote(parts.path)).resolve()
    if target.is_dir():
        target = target / "index.html"
    if not target.is_relative_to(site) or not target.is_file():
        return "leads to no file"
    if parts.fragment and target in pages:
        anchors = pages[target].anchors
        if unquote(parts.fragment) not in anchors:
            return "names no place on its page"
    return None
