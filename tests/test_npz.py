"""Array files of images: floats in bounded memory."""

import tracemalloc

import numpy as np

from semvq.data.npz import open_npz


def test_float_images_become_uint8_without_a_whole_copy_in_double_precision(tmp_path):
    rng = np.random.default_rng(0)
    floats = rng.random((600, 32, 32, 3), np.float32)
    np.savez(tmp_path / "f.npz", arr_0=floats)
    tracemalloc.start()
    try:
        found, _, _ = open_npz(tmp_path / "f.npz", (0.0, 1.0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # what the file holds, and the result; a whole copy in float64 alone is twice that of the file
    assert peak < 1.5 * floats.nbytes
    assert np.array_equal(found, (floats.astype(np.float64) * 255).round().astype(np.uint8))
