"""A self-contained HTML page: sections of text, pictures, plots and tables; nothing is fetched."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
from torch import Tensor

from semvq.data.images import png_bytes

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:1040px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.7em;margin-bottom:.2em}h2{margin-top:1.8em;font-size:1.25em}
figure{margin:1em 0}figcaption{color:#555;font-size:.92em;max-width:60em}
img{max-width:100%;height:auto}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .9em .25em 0;text-align:left;
border-bottom:1px solid #ddd;vertical-align:top}td.number{text-align:right;
font-variant-numeric:tabular-nums}
"""


@dataclass(frozen=True)
class Picture:
    """An image grid (3, H, W) in [-1, 1], or the bytes of a PNG, with what there is to see."""

    image: Tensor | bytes
    caption: str
    width: int | None = None  # on the page, in pixels; None is the image's own


@dataclass(frozen=True)
class Section:
    """One heading with its content, in this order: text, pictures, a table."""

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    rows: Sequence[Sequence[object]] = field(default=())
    header: Sequence[str] = ()


def write_report(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write the page to `path`."""
    body = "".join(map(_section, sections))
    path.write_text(
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>{body}</body></html>\n"
    )


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    levels: Mapping[str, float] | None = None,
) -> bytes:
    """A line plot as PNG: named (x, y) series and named horizontal levels."""
    from matplotlib.figure import Figure

    matplotlib.use("Agg")
    figure = Figure(figsize=(5.2, 3.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for name, (x, y) in series.items():
        axes.plot(x, y, label=name, marker="." if len(x) < 30 else "")
    for index, (name, value) in enumerate((levels or {}).items()):
        axes.axhline(value, label=name, linestyle=("--", ":", "-.")[index % 3], color="0.45")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{html.escape(section.text)}</p>")
    parts += map(_picture, section.pictures)
    if section.rows:
        head = "".join(f"<th>{html.escape(h)}</th>" for h in section.header)
        rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in section.rows)
        parts.append(f"<table><tr>{head}</tr>{rows}</table>")
    return "".join(parts)


def _picture(picture: Picture) -> str:
    data = picture.image if isinstance(picture.image, bytes) else png_bytes(picture.image)
    width = f" width='{picture.width}'" if picture.width else ""
    caption = html.escape(picture.caption)
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return (
        f"<figure><img src='{source}'{width} alt='{caption}'>"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return f"<td>{'yes' if value else 'no'}</td>"
    if isinstance(value, float):
        return f"<td class='number'>{value:.3f}</td>"
    if isinstance(value, int):
        return f"<td class='number'>{value:,}</td>"
    return f"<td>{html.escape(str(value))}</td>"
