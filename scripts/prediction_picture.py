"""One picture of several comparison pages of the same photos (Fig. 6's visualisation):

`python -m scripts.prediction_picture OUT.png "alpha 0=page.html" "alpha 1=other.html"`: original,
then reconstruction and teacher-forced prediction of the first tokenizer of each page.
"""

import base64
import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

PHOTOS = 6  # the page's first ones
KINDS = ("reconstruction", "prediction")


class Pictures(HTMLParser):
    """photo: kind: image, of a comparison page."""

    def __init__(self, page: str):
        super().__init__()
        self.found: dict[str, dict[str, Image.Image]] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep a photo's own pictures, by their alternative text."""
        values = {key: value or "" for key, value in attrs}
        alt = re.fullmatch(r"(original|reconstruction|prediction)(?: by .*?)?: (.+)",
                           values.get("alt", "")
                           )  # fmt: skip
        if tag == "img" and alt:
            kind, photo = alt.groups()
            data = base64.b64decode(values["src"].split(",", 1)[1])
            image = Image.open(io.BytesIO(data)).convert("RGB")
            self.found.setdefault(photo, {}).setdefault(kind, image)


def picture(pages: dict[str, dict[str, dict[str, Image.Image]]]) -> Figure:
    """A row for each photo; ValueError where the pages show different ones."""
    first = next(iter(pages.values()))
    for label, photos in pages.items():
        if list(photos) != list(first):
            raise ValueError(f"{label}: expected the first page's photos, found others")
    shown = list(first)[:PHOTOS]
    columns = [("original", next(iter(pages)), "original")]
    columns += [(f"{label}\n{kind}", label, kind) for label in pages for kind in KINDS]
    figure = Figure(figsize=(1.1 * len(columns), 1.1 * len(shown) + 0.4), layout="constrained")
    grid = figure.subplots(len(shown), len(columns), squeeze=False)
    for row, photo in zip(grid, shown):
        for axes, (title, label, kind) in zip(row, columns):
            axes.imshow(pages[label][photo][kind], interpolation="nearest")
            axes.set_axis_off()
            if photo == shown[0]:
                axes.set_title(title, fontsize=8)
    return figure


def main() -> None:
    """Write it."""
    matplotlib.use("Agg")
    out, words = Path(sys.argv[1]), [word.split("=", 1) for word in sys.argv[2:]]
    if any(len(word) < 2 for word in words):
        sys.exit("expected LABEL=PAGE.html after OUT.png")
    pages = {label: Pictures(Path(page).read_text()).found for label, page in words}
    picture(pages).savefig(out, dpi=110)
    print(out, out.stat().st_size)


if __name__ == "__main__":
    main()
