"""A page that compares tokenizers on the same photos: one HTML file, nothing is fetched.

Photos with sliders and overlays (comparison.js), all figures with their intervals, scatter plots,
samples and facts. Without its script the page lacks the sliders and overlays, nothing else.
"""

import base64
import html
from collections.abc import Iterable
from importlib import resources
from math import floor
from pathlib import Path

from matplotlib import colormaps
from matplotlib.colors import to_hex
from torch import Tensor

from semvq.data.pixels import png_bytes
from semvq.files import write_atomically
from semvq.probe.comparison import Compared, Comparison, Figure, Value
from semvq.probe.panels import heat_map
from semvq.probe.plots import Point, Scatter, scatter_svg

__all__ = ["Compared", "Comparison", "Figure", "Point", "Scatter", "Value", "write_comparison"]

PAGE_WIDTH, GAP = 1200, 28  # pixels that a row of pictures has, and that each tokenizer adds
SMALLEST, LARGEST = 112, 192  # a picture on the page, in pixels
SAMPLE = 112
RIGHT_MAP, ENTROPY_MAP = "cividis", "viridis"  # their ends differ in lightness, not hue alone
# a photo's name cannot make the page fetch anything
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
DIRECTIONS = {"higher": "↑ higher is better", "lower": "↓ lower is better"}
MARKS = {"best": ("★", "best"), "tied": ("≈", "no clear difference"), "": ("", "")}
LEGEND = (
    "± is half of a 95 % interval; “± ?”: none is known. ★ best: its interval overlaps no other. "
    "≈ no clear difference: the best value and all whose intervals overlap its own. Rows without a "
    "mark are not for ranking, or lack an interval."
)
READING = (
    "The prediction is teacher-forced: at every place the transformer’s likeliest code given the "
    "true codes before it, decoded by the same tokenizer."
)


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write the page to `path`: whole, or not at all."""
    write_atomically(path, comparison_html(comparison))


def comparison_html(comparison: Comparison) -> str:
    """The page as text."""
    sections = {
        "photos": ("Photos", _photos(comparison)),
        "figures": ("Figures", _figures(comparison)),
        "plots": ("Plots", _plots(comparison)),
        "samples": ("Samples", _samples(comparison)),
        "facts": ("How these numbers were made", _facts(comparison)),
    }
    shown = {key: section for key, section in sections.items() if section[1]}
    links = "".join(f'<a href="#{key}">{title}</a>' for key, (title, _) in shown.items())
    body = "".join(
        f'<section id="{key}"><h2>{title}</h2>{content}</section>'
        for key, (title, content) in shown.items()
    )
    title = html.escape(comparison.title)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_packaged('comparison.css')}</style></head><body>"
        f"<header><h1>{title}</h1><p>{html.escape(comparison.lead)}</p>{_items(comparison)}"
        f'<nav aria-label="Parts of this page">{links}</nav></header><main>{body}</main>'
        f"<script>{_packaged('comparison.js')}</script></body></html>\n"
    )


def _packaged(name: str) -> str:
    return resources.files("semvq.probe").joinpath(name).read_text(encoding="utf-8")


def _items(comparison: Comparison) -> str:
    rows = "".join(
        f"<li><b>{html.escape(c.name)}</b> <small>{html.escape(c.subtitle)}</small></li>"
        for c in comparison.compared
    )
    return f'<ul class="items">{rows}</ul>'


def _image(image: Tensor, kind: str, words: str) -> str:
    """One embedded picture; the script shows it in other places without a second copy."""
    data = base64.b64encode(png_bytes(image)).decode()
    return (
        f'<img class="{kind}" width="{image.shape[2]}" height="{image.shape[1]}" '
        f'alt="{html.escape(words)}" src="data:image/png;base64,{data}">'
    )


def _photos(comparison: Comparison) -> str:
    high = comparison.highest_entropy()
    rows = "".join(_photo(comparison, index, high) for index in range(len(comparison.photos)))
    picture, stage, kind = _display_sizes(comparison)
    has_predictions = any(c.predictions is not None for c in comparison.compared)
    reading = f"<p>{READING}</p>" if has_predictions else ""
    sizes = f"--wish:{picture:g}px;--stage:{stage:g}px"
    return (
        f'{reading}<div id="pictures" class="{kind}" style="{sizes}">'
        f"{_tools(comparison, high)}{rows}</div>"
    )


def _display_sizes(comparison: Comparison) -> tuple[float, float, str]:
    """Widths on the page, in pixels: of a picture in a row, and of one with a slider; and how the
    browser is to scale them.
    """
    num, side = len(comparison.compared), max(comparison.photos.shape[2:])
    room = min(max((PAGE_WIDTH - GAP * num) / (1 + 2 * num), SMALLEST), LARGEST)
    share = comparison.photos.shape[3] / side
    kind = "pixelated" if room >= side else "smooth"
    return _fitted(side, room) * share, _fitted(side, 2 * room) * share, kind


def _fitted(side: int, room: float) -> float:
    """The largest multiple of half the image's side that fits: its pixels stay (nearly) even."""
    return floor(2 * room / side) / 2 * side if room >= side else room


def _tools(comparison: Comparison, high: float) -> str:
    """What the script works with; hidden where it does not run."""
    pairs = ["original reconstruction"]
    if any(c.predictions is not None for c in comparison.compared):
        pairs += ["reconstruction prediction", "original prediction"]
    options = "".join(
        f'<option value="{pair}">slider: {pair.replace(" ", " | ")}</option>' for pair in pairs
    )
    buttons = legends = overlays = ""
    if any(c.correct is not None for c in comparison.compared):
        wrong, right = _colours(RIGHT_MAP, 2)
        buttons += _button("accuracy", "right codes")
        legends += (
            f'<span class="legend accuracy"><i class="swatch" style="background:{right}"></i>right '
            f'<i class="swatch" style="background:{wrong}"></i>wrong</span>'
        )
    if any(c.entropy is not None for c in comparison.compared):
        stops = ",".join(_colours(ENTROPY_MAP, 9))
        buttons += _button("entropy", "entropy")
        legends += (
            '<span class="legend entropy">0 <i class="scale" '
            f'style="background:linear-gradient(90deg,{stops})"></i> {high:.2f} nats</span>'
        )
    if buttons:
        overlays = f'<div role="group" aria-label="Over the predictions">{buttons}{legends}</div>'
    return (
        '<div class="tools" hidden><label><span class="hidden">View</span><select>'
        f'<option value="">side by side</option>{options}</select></label>{overlays}</div>'
    )


def _button(overlay: str, words: str) -> str:
    return f'<button type="button" value="{overlay}" aria-pressed="false">{words}</button>'


def _colours(name: str, num: int) -> list[str]:
    return [to_hex(colormaps[name](i / (num - 1))) for i in range(num)]


def _photo(comparison: Comparison, index: int, high: float) -> str:
    label = html.escape(comparison.labels[index])
    original = _image(comparison.photos[index], "shown", f"original: {comparison.labels[index]}")
    pairs = "".join(
        _pair(one, index, comparison.labels[index], high) for one in comparison.compared
    )
    return (
        f'<article class="photo"><h3>{label}</h3><div class="row"><div class="original">'
        f'<h4>original</h4><div class="frame">{original}</div></div>{pairs}</div></article>'
    )


def _pair(one: Compared, index: int, label: str, high: float) -> str:
    """A tokenizer's reconstruction and prediction of one photo, and how well it was predicted."""
    name, of = html.escape(one.name), f"by {one.name}: {label}"
    shown = _image(one.reconstructions[index], "shown", f"reconstruction {of}")
    pictures = _picture("reconstruction", shown)
    if one.predictions is not None:
        shown = _image(one.predictions[index], "shown", f"prediction {of}")
        pictures += _picture("prediction", shown + _maps(one, index, of, high))
    return (
        f'<div class="pair" data-label="{html.escape(f"{one.name}, {label}")}">'
        f'<h4 title="{name}">{name}</h4><div class="pictures">{pictures}</div>'
        f'<p class="note">{_predicted(one, index)}</p></div>'
    )


def _picture(role: str, images: str) -> str:
    return (
        f'<figure class="{role}"><div class="frame">{images}</div>'
        f"<figcaption>{role}</figcaption></figure>"
    )


def _maps(one: Compared, index: int, of: str, high: float) -> str:
    """One pixel per code: the page stretches it over the picture."""
    images = ""
    if one.correct is not None:
        values = one.correct[index : index + 1]
        right = heat_map(values.float(), values.shape[1:], RIGHT_MAP, 0.0, 1.0)
        images += _image(right[0], "map accuracy", f"where the top-1 code was right, {of}")
    if one.entropy is not None:
        values = one.entropy[index : index + 1]
        entropy = heat_map(values, values.shape[1:], ENTROPY_MAP, 0.0, high)
        images += _image(entropy[0], "map entropy", f"entropy per code, {of}")
    return images


def _predicted(one: Compared, index: int) -> str:
    words = []
    if one.correct is not None:
        words.append(f"{100 * float(one.correct[index].float().mean()):.0f} % of codes right")
    if one.entropy is not None:
        words.append(f"entropy {float(one.entropy[index].mean()):.2f} nats")
    return " · ".join(words)


def _wide(label: str, content: str) -> str:
    """A box that scrolls by itself where the screen is narrow, by keyboard too."""
    return f'<div class="wide" role="region" aria-label="{label}" tabindex="0">{content}</div>'


def _figures(comparison: Comparison) -> str:
    if not comparison.figures:
        return ""
    names = "".join(f'<th scope="col">{html.escape(c.name)}</th>' for c in comparison.compared)
    reading = f"<p>{html.escape(comparison.reading)}</p>" if comparison.reading else ""
    table = (
        f'<table class="figures"><thead><tr><th scope="col">figure</th>{names}</tr></thead>'
        f"<tbody>{''.join(map(_figure, comparison.figures))}</tbody></table>"
    )
    return f'{reading}{_wide("Table of all figures", table)}<p class="note">{LEGEND}</p>'


def _figure(figure: Figure) -> str:
    notes = [DIRECTIONS.get(figure.better or "", ""), figure.note]
    if figure.beside is not None:
        notes.append(f"Read it only together with {figure.beside}.")
    small = "".join(f"<small>{html.escape(note)}</small>" for note in notes if note)
    unit = f", {html.escape(figure.unit)}" if figure.unit else ""
    decimals = figure.decimals()
    cells = "".join(_cell(v, mark, decimals) for v, mark in zip(figure.values, figure.marks()))
    name = f"<b>{html.escape(figure.name)}</b>{unit}"
    return f'<tr><th scope="row">{name}{small}</th>{cells}</tr>'


def _cell(value: Value | None, mark: str, decimals: int) -> str:
    if value is None:
        return '<td>–<span class="mark"></span></td>'
    sign, words = MARKS[mark]
    error = "± ?" if value.plus_minus is None else f"± {value.plus_minus:,.{decimals}f}"
    number = f"{value.value:,.{decimals}f}" + (f" {error}" if value.plus_minus != 0 else "")
    return (
        f'<td class="{mark}"><span class="value">{number}</span><span class="mark">'
        f'<span aria-hidden="true">{sign}</span><span class="hidden">{words}</span></span></td>'
    )


def _plots(comparison: Comparison) -> str:
    figures = "".join(
        f"<figure><h3>{html.escape(s.title)}</h3>{scatter_svg(s)}"
        f"<figcaption>{html.escape(s.caption)}</figcaption></figure>"
        for s in comparison.scatters
    )
    return f'<div class="plots">{figures}</div>' if figures else ""


def _samples(comparison: Comparison) -> str:
    drawn = [
        (" · ".join(filter(None, (c.name, c.samples_by))), c.samples)
        for c in comparison.compared
        if c.samples is not None
    ]
    if not drawn:
        return ""
    num, side = len(drawn[0][1]), max(drawn[0][1].shape[2:])
    width = _fitted(side, SAMPLE)
    cells = "".join(_sample_row(name, samples, width >= side) for name, samples in drawn)
    columns = f"grid-template-columns:repeat({num},{width:g}px)"
    grid = f'<div class="samples" style="{columns}">{cells}</div>'
    return f"<p>Every column is one seed.</p>{_wide('Samples', grid)}"


def _sample_row(name: str, samples: Iterable[Tensor], enlarged: bool) -> str:
    kind = "pixelated" if enlarged else "smooth"
    images = (_image(x, kind, f"sample {i} by {name}") for i, x in enumerate(samples, 1))
    return f"<h3>{html.escape(name)}</h3>{''.join(images)}"


def _facts(comparison: Comparison) -> str:
    rows = "".join(
        f'<tr><th scope="row">{html.escape(key)}</th><td>{html.escape(value)}</td></tr>'
        for key, value in comparison.facts
    )
    return f'<table class="facts">{rows}</table>' if rows else ""
