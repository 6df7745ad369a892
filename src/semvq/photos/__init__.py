"""Fruit photos that come with the package, for the demo and the tests; see ATTRIBUTION.md.

1,393 photos of 14 classes, about 72 pixels a side, made by scripts/make_fruit_photos.py; no shelf
is in both parts.
"""

from importlib.resources import files
from pathlib import Path


def fruit() -> tuple[Path, Path]:
    """Tar files of the training and the held-out photos, members `<class>/<file>`.

    Raises ValueError when the package lies in a zip file, where no path leads.
    """
    folder = files("semvq.photos")
    if not isinstance(folder, Path):
        raise ValueError("expected semvq installed in a folder, found it in an archive; unpack it")
    return folder / "fruit-train.tar", folder / "fruit-val.tar"
