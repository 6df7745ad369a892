"""Many images as one array file, in the layout of ADM's evaluation suite (Dhariwal & Nichol 2021).

`arr_0` uint8 (N, H, W, 3) and, where there are classes, `arr_1` int64 (N,).
"""

from pathlib import Path

import numpy as np
from torch import Tensor

from semvq.files import replace_atomically


def save_npz(images: Tensor, classes: Tensor | None, path: Path) -> None:
    """Write uint8 images (N, 3, H, W), and their classes (N,), to `path`: whole or not at all."""
    arrays = [images.permute(0, 2, 3, 1).cpu().numpy()]
    if classes is not None:
        arrays.append(classes.cpu().numpy())

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # a name alone would get the suffix .npz
            np.savez(file, *arrays)

    path.parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(path, write)
