"""Token cache: what is written comes back, and what does not belong is refused by name."""

import json
import pickle

import numpy as np
import pytest
import torch

from semvq.data.images import DataConfig, ImageSet, eval_batches, stream, to_float
from semvq.data.tokens import TokenCache, TrainTokens, write_tokens
from tests.test_images import folder_of, spoil

CONFIG = DataConfig(resolution=16, min_crop=0.5, random_position=True, flip=True)
NUM_CODES, SPACE = 32, "5pace" * 8


def encode(images: torch.Tensor) -> torch.Tensor:
    """Codes (B, 4, 2): the mean of each 4 x 8 pixels, in 32 steps."""
    means = torch.nn.functional.avg_pool2d(images.mean(1), (4, 8))
    return ((means + 1) / 2 * (NUM_CODES - 1)).round().long()


@pytest.fixture
def images(tmp_path) -> ImageSet:
    return ImageSet.open(folder_of(tmp_path / "photos"))


def write(path, images: ImageSet, **changes) -> TokenCache:
    options = {"num_views": 3, "num_codes": NUM_CODES, "code_space_hash": SPACE, "batch_size": 5}
    return write_tokens(path, encode, images, CONFIG, **options | changes)


@pytest.fixture
def cache(tmp_path, images) -> TokenCache:
    return write(tmp_path / "tokens" / "train", images)


def test_codes_come_back(cache, images):
    batch = next(eval_batches(images, CONFIG, 18))
    codes, labels = cache.read(range(18))
    assert codes.dtype == torch.int64 and torch.equal(codes, encode(to_float(batch["image"])))
    assert torch.equal(labels, batch["label"])
    mirrored, _ = cache.read([3], view=1)
    assert torch.equal(mirrored[0], codes[3].flip(1)), "view 1 is the mirror image"
    assert not torch.equal(cache.read([3], view=2)[0][0], codes[3])
    assert cache.codes.dtype == np.uint16 and cache.codes.shape == (18, 3, 4, 2)


def test_facts_come_back(cache, images):
    again = TokenCache.open(cache.path, SPACE)
    for found in (cache, again):
        assert (len(found), found.num_views, found.grid) == (18, 3, (4, 2))
        assert (found.num_codes, found.code_space_hash) == (NUM_CODES, SPACE)
        assert (found.classes, found.fingerprint) == (("a", "b", "c"), images.fingerprint)
        assert found.bad == ()
    assert TokenCache.open(cache.path).code_space_hash == SPACE


def test_writing_is_deterministic_in_any_batch(tmp_path, cache, images):
    other = write(tmp_path / "other", images, batch_size=18, num_workers=2)
    assert np.array_equal(other.codes, cache.codes)


def test_large_codebooks_get_wider_numbers(tmp_path, images):
    wide = write(tmp_path / "wide", images, num_codes=65537)
    assert wide.codes.dtype == np.int32
    assert write(tmp_path / "full", images, num_codes=65536).codes.dtype == np.uint16


def test_stream_of_codes(cache):
    data = TrainTokens(cache, seed=1)
    items = [data[p] for p in range(18)]
    assert sorted(item["index"] for item in items) == list(range(18))
    views = set()
    for position in range(54):
        item = data[position]
        rows = [cache.read([item["index"]], v)[0][0] for v in range(3)]
        match = [v for v in range(3) if torch.equal(rows[v], item["codes"])]
        assert match and item["label"] == item["index"] // 6
        views.update(match)
    assert views == {0, 1, 2}
    straight = stream(data, 0, 4)
    batches = [next(straight) for _ in range(6)]
    for start in (2, 5):
        resumed = next(stream(data, 4 * start, 4, num_workers=1))
        assert torch.equal(resumed["codes"], batches[start]["codes"])
    assert batches[0]["codes"].dtype == torch.int64 and batches[0]["codes"].shape == (4, 4, 2)


def test_other_code_space_is_refused(cache):
    with pytest.raises(ValueError, match=f"expected codes of code space other, found {SPACE}"):
        TokenCache.open(cache.path, "other")


@pytest.mark.parametrize("name", ["codes.npy", "labels.npy"])
def test_truncated_or_missing_file_is_refused(cache, name):
    data = (cache.path / name).read_bytes()
    (cache.path / name).write_bytes(data[:-3])
    size = len(data)
    with pytest.raises(ValueError, match=rf"{name}: expected {size} bytes, found {size - 3}"):
        TokenCache.open(cache.path)
    (cache.path / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: expected {size} bytes, found None"):
        TokenCache.open(cache.path)


def test_code_beyond_the_codebook_is_refused(cache):
    codes = np.load(cache.path / "codes.npy")
    codes[17, 2, 3, 1] = NUM_CODES
    np.save(cache.path / "codes.npy", codes)
    with pytest.raises(ValueError, match="expected codes from 0 to 31, found 32"):
        TokenCache.open(cache.path)


def test_wrong_shape_key_and_json_are_refused(cache):
    file = cache.path / "cache.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps(facts | {"num_views": 2}))
    with pytest.raises(ValueError, match=r"expected codes \(18, 2, 4, 2\), found \(18, 3, 4, 2\)"):
        TokenCache.open(cache.path)
    del facts["grid"]
    file.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="expected a key 'grid'"):
        TokenCache.open(cache.path)
    file.write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        TokenCache.open(cache.path)


def test_no_cache_there(tmp_path):
    with pytest.raises(ValueError, match="expected a token cache at .*semvq encode"):
        TokenCache.open(tmp_path)


def test_writing_is_all_or_nothing(tmp_path, images):
    calls = []

    def fails_later(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of luck")
        return encode(x)

    with pytest.raises(RuntimeError, match="out of luck"):
        write_tokens(
            tmp_path / "out" / "t", fails_later, images, CONFIG,
            num_views=1, num_codes=NUM_CODES, code_space_hash=SPACE, batch_size=5,
        )  # fmt: skip
    assert list((tmp_path / "out").iterdir()) == []


def test_an_existing_folder_is_left_alone(cache, images):
    with pytest.raises(ValueError, match="expected a new folder"):
        write(cache.path, images)


def test_unreadable_images_are_left_out_and_named(tmp_path, images):
    spoil(images, 4)
    cache = write(tmp_path / "tokens", images)
    assert len(cache) == 17 and len(cache.bad) == 1 and "4.png" in cache.bad[0]
    whole = encode(to_float(next(eval_batches(images, CONFIG, 18))["image"]))
    assert torch.equal(cache.read(range(17))[0], whole)


def test_progress_counts_images(tmp_path, images):
    seen = []
    write(tmp_path / "tokens", images, progress=lambda *state: seen.append(state))
    assert [s[1:] for s in seen] == [(5, 18), (10, 18), (15, 18), (18, 18)]


def test_a_pickled_cache_holds_no_codes(cache):
    data = pickle.dumps(cache)
    assert len(data) < 2000
    assert np.array_equal(pickle.loads(data).codes, cache.codes)
