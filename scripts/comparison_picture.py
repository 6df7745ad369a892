"""The picture in docs/metrics.md, from a comparison page and with the tests' Chromium:

`python -m scripts.comparison_picture comparison.html` writes docs/comparison.png.
"""

import io
import sys
from pathlib import Path

from PIL import Image
from tests.browser import Browser

WIDTH, TOP, BOTTOM = 1100, 350, 1060  # of the page, in pixels: the first photos
OUT = Path(__file__).parent.parent / "docs" / "comparison.png"


def main() -> None:
    """Cut the first photos out of the page."""
    whole = OUT.with_suffix(".whole.png")
    with Browser() as browser:
        browser.open(Path(sys.argv[1]), width=WIDTH)
        browser.screenshot(whole)
    image = Image.open(io.BytesIO(whole.read_bytes())).convert("RGB")
    whole.unlink()
    image.crop((0, TOP, image.width, BOTTOM)).quantize(256).save(OUT, optimize=True)
    print(OUT, OUT.stat().st_size)


if __name__ == "__main__":
    main()
