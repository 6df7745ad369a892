"""The README's picture, from a finished demo: `python scripts/readme_picture.py runs/demo`."""

import sys
from pathlib import Path

from PIL import Image, ImageDraw

ROWS = (
    ("reconstruction", "held-out photos; phase 1; phase 2; control"),
    ("samples_ar", "AR samples, a column per class"),
    ("samples_nar", "NAR samples"),
    ("samples_class_unigram", "control: codes of the class, drawn alone"),
)
WIDTH, LABEL = 1000, 22
CROP = {"samples_ar": 2, "samples_nar": 2, "samples_class_unigram": 1}  # rows of samples shown


def main() -> None:
    """Stack the report's pictures at one width, with a line of text above each."""
    folder = Path(sys.argv[1]) / "pictures"
    parts = []
    for name, text in ROWS:
        image = Image.open(folder / f"{name}.png").convert("RGB")
        if name in CROP:
            image = image.crop((0, 0, image.width, 50 * CROP[name] - 2))
        height = round(image.height * WIDTH / image.width)
        parts.append((text, image.resize((WIDTH, height), Image.Resampling.BICUBIC)))
    sheet = Image.new("RGB", (WIDTH, sum(p.height + LABEL for _, p in parts)), "white")
    top = 0
    for text, part in parts:
        ImageDraw.Draw(sheet).text((4, top + 4), text, fill=(40, 40, 40), font_size=14)
        sheet.paste(part, (0, top + LABEL))
        top += part.height + LABEL
    target = Path(__file__).parent.parent / "docs" / "demo.png"
    sheet.quantize(192).save(target, optimize=True)
    print(target, target.stat().st_size)


if __name__ == "__main__":
    main()
