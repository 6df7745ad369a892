"""The page of a published model: what it is, what it was made of, and figures with how they came.

All of it is read from the run's own record. Places on the disk of whoever made it stay out of it.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from semvq.files import CONFIG, read_json, reading
from semvq.generators.base import Generator
from semvq.interop.shared_files import MANIFEST, RECIPE
from semvq.tokenizer.model import Tokenizer

FINISHED = "finished"
DIGITS = 6  # significant ones, of figures
_PLACES = ("images", "run", "place")  # keys whose text is a path
_UNREAD = "could not be read"  # how a warning of `semvq evaluate` about a file begins
_COUNTS = re.compile(r"\d+ images(?: in \d+ classes)?")


class Model(NamedTuple):
    """The network of a run, its licence on the hub, the sha256 of its weights, its picture."""

    network: Tokenizer | Generator
    licence: str | None
    weights: str
    has_picture: bool


class Figures(NamedTuple):
    """What `semvq evaluate --json` found: figures by name, what they depend on, warnings."""

    protocol: str
    figures: dict[str, float]
    facts: list[tuple[str, str]]
    warnings: list[str]


def read_figures(path: Path, weights: str) -> Figures:
    """The figures in `path`; ValueError where they are not of the weights of sha256 `weights`."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected figures that `semvq evaluate --json` wrote, found none"
        )
    with reading(path):
        record = read_json(path)
        try:
            figures = {str(name): float(value) for name, value in record["figures"].items()}
            found, protocol = record["facts"], str(record["protocol"])
            warnings = list(_warnings(map(str, record["warnings"])))
        except (TypeError, KeyError, AttributeError, ValueError):
            raise ValueError(
                f"{path}: expected what `semvq evaluate --json` writes, found another file"
            ) from None
        if found.get("model") != weights:
            raise ValueError(
                f"{path}: expected figures of the weights {weights[:16]}, found those of "
                f"{str(found.get('model'))[:16]}; evaluate this run, and give the file of that"
            )
        return Figures(protocol, figures, list(_flat(found)), warnings)


def _warnings(lines: Iterable[str]) -> Iterator[str]:
    """Warnings as they are, but files that could not be read as a number: their names are paths."""
    unread = 0
    for line in lines:
        if line.startswith(_UNREAD):
            unread += 1
        else:
            yield line
    if unread:
        yield f"{unread} images could not be read and were left out"


def _flat(facts: dict[str, Any], lead: str = "") -> Iterator[tuple[str, str]]:
    """Facts in words, without places."""
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{lead}{name}: ")
        elif name not in _PLACES and value is not None and not str(value).startswith(("/", "~")):
            words = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"{lead}{name}", words


def card(run: Path, model: Model, figures: Sequence[Figures]) -> str:
    """The page in Markdown, with the hub's header. ValueError for a record that is none."""
    with reading(run):
        name, made = _made(run)
    is_tokenizer = isinstance(model.network, Tokenizer)
    tags = [
        "semvq",
        "vector-quantization",
        "image-tokenizer" if is_tokenizer else "image-generation",
    ]
    header = ["---", "library_name: semvq", f"tags: {json.dumps(tags)}"]
    header += [f"license: {model.licence}"] if model.licence else []
    kind = "An image tokenizer" if is_tokenizer else "A transformer over a tokenizer's codes"
    parts = [
        "\n".join([*header, "---"]),
        f"# {name}",
        f"{kind}, made with semvq {_version()}.",
        _table("", "", _sizes(model.network)),
        *_picture(model),
        "## Use",
        _use(is_tokenizer),
        *_own_classes(model.network),
        "## What it was made of",
        _table("", "", made),
        *(["## Figures"] if figures else []),
        *(part for found in figures for part in _figures(found)),
        "## Files and licence",
        f"`model.safetensors` has sha256 `{model.weights}`; it and the other files are in "
        f"`{MANIFEST}`, and are held against it when the model is loaded.",
        f"Licence: {model.licence}."
        if model.licence
        else "No licence was named: without the author's word nobody else may use it.",
    ]
    return "\n\n".join(parts) + "\n"


def _version() -> str:
    from semvq import __version__  # inside: the package's own module imports what this file does

    return __version__


def _picture(model: Model) -> list[str]:
    if not model.has_picture:
        return []
    words = "Samples of seed 0, classes in turn"
    if isinstance(model.network, Tokenizer):
        words = "Photos that come with semvq, above their reconstructions"
    return [f"![{words}](picture.png)", f"*{words}.*"]


def _sizes(network: Tokenizer | Generator) -> list[tuple[str, str]]:
    size = f"{sum(p.numel() for p in network.parameters()):,}"
    rows = [("networks", type(network.config).__name__), ("parameters", size)]
    if isinstance(network, Tokenizer):
        side, (height, width) = network.config.resolution, network.grid
        return [
            *rows,
            ("images", f"float in [-1, 1], (B, 3, {side}, {side})"),
            ("codes", f"int64 in [0, {network.num_codes}), (B, {height}, {width})"),
            ("code space", network.code_space_hash()),
        ]
    config = network.config
    return [
        *rows,
        ("layers, width, heads", f"{config.num_layers}, {config.width}, {config.num_heads}"),
        ("codes", f"{config.num_codes}, {config.grid_height} x {config.grid_width}"),
        ("classes", ", ".join(map(str, network.extra.get("classes", []))) or "none"),
        ("code space", str(network.extra.get("code_space_hash"))),
    ]


def _use(is_tokenizer: bool) -> str:
    """Lines of Python."""
    what = "load_tokenizer" if is_tokenizer else "load_generator"
    lines = [f"from semvq import {what}", ""]
    if is_tokenizer:
        lines += [
            'tokenizer = load_tokenizer("ORG/NAME")  # of this page; or a folder with its files',
            "codes = tokenizer.encode(images)",
            "images = tokenizer.decode(codes).clamp(-1, 1)",
        ]
    else:
        lines += [
            'generator = load_generator("ORG/NAME")  # of this page; or a folder with its files',
            "codes = generator.sample(4, classes, seed=0)  # for a tokenizer of that code space",
        ]
    return "\n".join(["```python", *lines, "```"])


def _own_classes(network: Tokenizer | Generator) -> list[str]:
    """A word on networks that are not in the package."""
    configs = [
        network.config,
        *([network.config.quantizer] if isinstance(network, Tokenizer) else []),
    ]
    own = [type(c).__name__ for c in configs if not type(c).__module__.startswith("semvq.")]
    if not own:
        return []
    return [f"{' and '.join(own)}: not in semvq. Import the file that defines it before loading."]


def _made(run: Path) -> tuple[str, list[tuple[str, str]]]:
    """The model's name, and what it was made of by its run's record."""
    config = read_json(run / CONFIG)
    rows: list[tuple[str, str]] = []
    converted = config.get("extra", {}).get("converted", {})
    name = run.name or "model"
    if converted:
        rows += [
            ("converted from", f"{converted['from']}: {converted['file']}"),
            ("sha256 of that file", str(converted["sha256"])),
        ]
    if (run / RECIPE).is_file():
        record = read_json(run / RECIPE)
        recipe, loop = record["recipe"], record["recipe"]["loop"]
        name = str(recipe["name"])
        rows += [
            ("recipe", f"`{name}`: {recipe['summary']}"),
            ("its hash, every field", f"`{record['hash']}`, `{RECIPE}`"),
            ("length", f"{loop['duration']}, {loop['batch_size']} images a step"),
            ("starts from", str(recipe["upstream"] or "nothing")),
            ("torch", str(record["torch"])),
        ]
    facts, early = _identity(run)
    rows += facts
    if early:
        rows.append(("state", "stopped before its end: the weights of its last save"))
    return name, rows or [("record", "none")]


def _identity(run: Path) -> tuple[list[tuple[str, str]], bool]:
    """Data and upstream by fingerprint and count, and whether the run was left unfinished."""
    path = run / FINISHED
    if not path.is_file():
        return [], (run / "checkpoints").exists()
    text = path.read_text(encoding="utf-8")
    if not text.lstrip().startswith("{"):  # of older versions: a hash alone
        return [], False
    rows = []
    for name, fact in read_json(path)["identity"].items():
        value, words = fact if isinstance(fact, list) else (fact, "")
        counts = _COUNTS.match(str(words))
        rows.append((str(name), f"`{value}`" + (f", {counts[0]}" if counts else "")))
    return rows, False


def _figures(found: Figures) -> list[str]:
    rows = [(name, f"{value:.{DIGITS}g}") for name, value in found.figures.items()]
    return [
        f"### Protocol {found.protocol}",
        _table("figure", found.protocol, rows),
        *(f"Warning: {_cell(line)}" for line in found.warnings),
        "They depend on:",
        _table("", "", found.facts),
    ]


def _table(left: str, right: str, rows: Sequence[tuple[str, str]]) -> str:
    lines = [(left, right), ("---", "---"), *((_cell(a), _cell(b)) for a, b in rows)]
    return "\n".join(f"| {a} | {b} |" for a, b in lines)


def _cell(text: str) -> str:
    """Text that stays within its cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
