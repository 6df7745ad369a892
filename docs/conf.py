"""The documentation site: `python -m sphinx -W docs site` writes it into the folder `site`.

Pages are the Markdown files here; README and its neighbours are included, not copied. Nothing is
fetched, neither to build the site nor to read it.
"""

import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))  # the docstrings of this checkout

from pygments.lexers import BashLexer  # noqa: E402
from pygments.token import Name, Text  # noqa: E402

from semvq import __version__  # noqa: E402

project = "semvq"
copyright = "the semvq authors"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
nitpicky = True
# of types, those of other packages are no pages here
nitpick_ignore_regex = [("py:.*", r"(?!semvq\.).*")]

myst_heading_anchors = 3
html_theme = "furo"
html_title = f"semvq {release}"
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_style = "default"

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
maximum_signature_line_length = 88

# pages that include a file of the repository's root
INCLUDED = {
    "README.md": "overview.md",
    "EXPERIMENTS.md": "experiments.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}


class CommandLexer(BashLexer):
    """The shell's colours, but none for its builtins: `export` is a command of ours."""

    def get_tokens_unprocessed(self, text, *more):
        """As the base class's, but for builtins."""
        for place, kind, value in super().get_tokens_unprocessed(text, *more):
            yield place, Text if kind is Name.Builtin else kind, value


def for_site(text: str, folder: str) -> str:
    """A Markdown file that lies in `folder` of the repository, as a page of this folder.

    Links become those from here, those to folders, which are no pages, plain words; blocks of
    commands, which have no prompts, are coloured.
    """

    def moved(link: re.Match) -> str:
        words, path, anchor = link.groups()
        target = posixpath.normpath(posixpath.join(folder, path))
        if (ROOT / target).is_dir():
            return words
        page = INCLUDED.get(target) or posixpath.relpath(target, "docs")
        return f"[{words}](/{page}{anchor})"

    local = r"\[([^\]]*)\]\((?![a-z]+:|#)([^)#]+)([^)]*)\)"
    return re.sub(local, moved, text.replace("```console", "```commands"))


def read_page(app, name, content):
    """A page of docs/ may link to what lies beside that folder."""
    content[0] = for_site(content[0], posixpath.join("docs", posixpath.dirname(name)))


def read_included(app, path, name, content):
    """An included file lies elsewhere than the page that it becomes."""
    content[0] = for_site(content[0], posixpath.normpath(f"docs/{path.parent.as_posix()}"))


def as_text(app, what, name, obj, options, lines):
    """Docstrings are sentences with `names` in them, not markup."""
    parts = re.split(r"`([^`]+)`", "\n".join(lines))
    parts[::2] = [re.sub(r"[*|@\\]|_(?=\W)", r"\\\g<0>", part) for part in parts[::2]]
    parts[1::2] = [f"``{part}``\\ " for part in parts[1::2]]
    lines[:] = "".join(parts).split("\n")


def setup(app):
    """Called by Sphinx."""
    app.add_lexer("commands", CommandLexer)
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
    app.connect("autodoc-process-docstring", as_text)
