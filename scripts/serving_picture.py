"""The picture in docs/serving.md, of a server at work and with the tests' Chromium:

`semvq serve runs/demo/fruit_phase1 runs/demo/fruit_phase2 runs/demo/fruit_ar runs/demo/fruit_nar`,
and beside it `python -m scripts.serving_picture http://127.0.0.1:8000` writes docs/serving.png.
"""

import io
import sys
from pathlib import Path

from PIL import Image
from tests.browser import Browser

WIDTH = 1000
PHOTO, STEP = 13, 7  # a packaged photo, and the step of its repainting that is shown
OUT = Path(__file__).parent.parent / "docs" / "serving.png"


def main() -> None:
    """Repaint a region of a packaged photo, and cut out all that is above the samples."""
    whole = OUT.with_suffix(".whole.png")
    with Browser() as browser:
        browser.open(sys.argv[1], width=WIDTH)
        browser.wait("document.querySelectorAll('.look').length > 0")
        first = browser.evaluate("document.querySelector('.look img').src")
        browser.click(f"#photos button:nth-child({PHOTO + 1})")
        browser.wait(f"document.querySelector('.look img').src !== '{first}'")
        browser.drag_across("#region", (0.45, 0.3), (0.95, 0.85))
        browser.click("#repaint form button")
        browser.wait("document.querySelector('#repaint .player') !== null")
        browser.evaluate(
            "(() => { const x = document.querySelector('#repaint .player input');"
            f"x.value = {STEP}; x.dispatchEvent(new Event('input')); }})()"
        )
        bottom = browser.evaluate(
            "document.querySelector('#repaint').getBoundingClientRect().bottom + scrollY"
        )
        browser.screenshot(whole)
    image = Image.open(io.BytesIO(whole.read_bytes())).convert("RGB")
    whole.unlink()
    image.crop((0, 0, image.width, int(bottom))).quantize(256).save(OUT, optimize=True)
    print(OUT, OUT.stat().st_size)


if __name__ == "__main__":
    main()
