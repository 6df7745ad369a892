"""The documentation site: built without a warning or a network, and whole."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import semvq
from tests.browser import needs_browser, working_browser

ROOT = Path(__file__).parent.parent
PAGES = sorted(p.relative_to(ROOT / "docs").with_suffix("") for p in (ROOT / "docs").rglob("*.md"))
BUILD = (
    "import socket, sys\n"
    "def refuse(*a, **k): raise AssertionError('network while building')\n"
    "socket.socket.connect = refuse\n"
    "from sphinx.cmd.build import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a built page links to, what it loads, and which anchors it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if "id" in found:
            self.anchors.add(found["id"])
        if tag == "a" and "href" in found:
            self.links.add(found["href"])
        if address := found.get(LOADED.get(tag, "")):
            self.loaded.add(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("site")
    options = ["-W", "--keep-going", "-q", "-d", str(place / "doctrees")]
    command = [sys.executable, "-c", BUILD, *options, str(ROOT / "docs"), str(place / "html")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return place / "html"


@pytest.fixture(scope="module")
def built(site) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_page_is_there_and_in_the_sidebar(site, built):
    listed = built[site / "index.html"].links
    for page in PAGES:
        assert site / f"{page}.html" in built
        assert str(page) == "index" or f"{page}.html" in listed, page


def test_links_and_anchors_lead_somewhere(built):
    num = 0
    for path, page in built.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or link == "#":
                assert parts.scheme in ("", "https"), link
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), (path.name, link)
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in built[target].anchors, (path.name, link)
            num += 1
    assert num > 1000


def test_nothing_is_loaded_from_elsewhere(site, built):
    for path, page in built.items():
        for address in page.loaded:
            parts = urlsplit(address)
            assert not parts.netloc and parts.scheme in ("", "data"), (path.name, address)
            assert parts.scheme or (path.parent / unquote(parts.path)).exists(), address
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text()), style


def test_every_public_name_is_in_the_reference(site, built):
    known = {a for path, page in built.items() if path.parent.name == "api" for a in page.anchors}
    names = {f"semvq.{name}" for name in semvq.__all__}
    shown = [ROOT / "README.md", ROOT / "examples" / "my_recipe.py", *(ROOT / "docs").glob("*.md")]
    for text in (path.read_text() for path in shown):
        for module, imported in re.findall(r"^from (semvq[\w.]*) import (.+)$", text, re.MULTILINE):
            names |= {f"{module}.{name}" for name in re.findall(r"\w+", imported)}
    names = {name for name in names if not name.startswith("semvq.recipes.fruit.")}  # recipes.md's
    assert len(names) > 12 and names <= known, names - known


def test_docstrings_are_read_as_text(site):
    page = (site / "api" / "tokenizers.html").read_text()
    assert "<cite>" not in page and "``" not in page and "mailto:" not in page


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_and_have_no_errors(site, tmp_path, width):
    with working_browser(tmp_path) as browser:
        for name in ("index", "your-photos", "api/generators"):
            browser.open(site / f"{name}.html", width)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width, name
            assert not browser.errors
            assert all(address.startswith("file:") for address in browser.requests)
