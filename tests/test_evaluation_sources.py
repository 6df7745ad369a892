"""Where evaluated images come from, in what order they are worked on, and what is refused."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from semvq.data.images import ImageSet, pieces, to_float, to_uint8
from semvq.data.npz import npz_names, open_npz, read_npz, save_npz
from semvq.evaluation import features, sources
from semvq.evaluation.generation import classes_like, count_codes, measure
from semvq.evaluation.sources import (
    UNIT,
    ArrayImages,
    FileImages,
    SampledImages,
    SampleFiles,
    SavedImages,
    UnigramImages,
    decode_pixels,
)
from semvq.evaluation.streaming import Setting, in_order
from semvq.generators.noise import UNIGRAM_CODES, Noise
from semvq.training.distributed import World
from tests.evaluation_toy import noisy, pixels_of, samples, toy_net
from tests.toy import toy_generator, toy_phase1

NUM = 2 * UNIT + 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return noisy(tmp_path_factory.mktemp("photos") / "photos", (60, 45, 30))


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return toy_phase1().task.tokenizer.build().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(1)
    return toy_generator("nar").task.generator.build().eval().requires_grad_(False)


def all_of(source, numbers=None):
    return list(source.units(list(pieces(range(source.num), UNIT)) if numbers is None else numbers))


def every_source(folder, tokenizer, generator):
    labels = torch.arange(NUM) % 3
    counts = torch.arange(1, tokenizer.num_codes + 1)
    array = folder.parent / "array.npz"
    save_npz(torch.from_numpy(pixels_of(NUM)).permute(0, 3, 1, 2), labels, array)
    return {
        "files": FileImages(ImageSet.open(folder), 16),
        "array": ArrayImages(array),
        "sampled": SampledImages(generator, tokenizer, labels, 3, {"steps": 2}),
        "unigram": UnigramImages(tokenizer, counts, tokenizer.grid, labels, 3),
    }


@pytest.mark.parametrize("name", ["files", "array", "sampled", "unigram"])
def test_a_unit_is_a_function_of_its_numbers(folder, tokenizer, generator, name):
    source = every_source(folder, tokenizer, generator)[name]
    assert (source.num, source.side) == (NUM, 16)
    whole = all_of(source)
    assert [(u.first, len(u.pixels)) for u in whole] == [(0, 64), (64, 64), (128, 7)]
    for unit, first in zip(all_of(source, [range(128, NUM), range(64)]), (2, 0)):
        assert torch.equal(unit.pixels, whole[first].pixels)
        assert torch.equal(unit.labels, whole[first].labels)
    for unit in whole:
        assert unit.pixels.dtype == torch.uint8 and unit.pixels.shape[1:] == (3, 16, 16)
        assert unit.labels.dtype == torch.int64 and len(unit.labels) == len(unit.pixels)
    labels = torch.cat([u.labels for u in whole])
    expected = [0] * 60 + [1] * 45 + [2] * 30 if name == "files" else (torch.arange(NUM) % 3)
    assert labels.tolist() == list(expected)
    assert len({bytes(image.numpy().data) for u in whole for image in u.pixels}) > NUM // 2


def test_sampled_images_are_what_the_generator_draws_and_the_tokenizer_decodes(
    tokenizer, generator
):
    labels = torch.arange(NUM) % 3
    source = SampledImages(generator, tokenizer, labels, 5, {"steps": 3, "temperature": 0.7})
    codes = generator.sample(NUM, labels, 5, steps=3, temperature=0.7)
    found = torch.cat([u.pixels for u in all_of(source)])
    expected = torch.cat([to_uint8(tokenizer.decode(c)) for c in codes.split(UNIT)])
    assert torch.equal(found, expected)
    assert source.facts()["seed"] == 5 and source.facts()["sampling"]["steps"] == 3


def test_samples_are_drawn_without_tf32(tokenizer, monkeypatch):
    allowed = []

    class Noting:
        config, device = toy_generator("nar").task.generator, torch.device("cpu")

        def sample(self, num, *_, **options):
            allowed.append(torch.backends.cudnn.allow_tf32)
            return torch.zeros(num, 4, 4, dtype=torch.int64)

    assert torch.backends.cudnn.allow_tf32, "torch's default"
    source = SampledImages(Noting(), tokenizer, torch.zeros(3, dtype=torch.int64), 0, {})
    for _ in source.units([range(3)]):
        assert torch.backends.cudnn.allow_tf32, "only while they are drawn"
    assert allowed == [False]


@pytest.mark.parametrize("name", ["files", "array", "sampled", "unigram"])
def test_labels_of_a_unit_take_no_others_along(folder, tokenizer, generator, name):
    """Pickling a view sends its whole storage: 400 kB a unit at 50,000 labels."""
    source = every_source(folder, tokenizer, generator)[name]
    for unit in source.units([range(64, 68)]):
        assert unit.labels.untyped_storage().nbytes() == 4 * 8


def test_the_unigram_control_has_the_unigram_distribution(tokenizer, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        sources, "decode_pixels", lambda t, codes: (drawn.append(codes), to_uint8(codes[:0]))[1]
    )
    counts = torch.tensor([0, 500, 300, 0, 150, 49, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    labels = torch.zeros(2000, dtype=torch.int64)
    all_of(UnigramImages(tokenizer, counts, (4, 4), labels, 0))
    codes = torch.cat(drawn)
    assert codes.shape == (2000, 4, 4)
    expected = counts / counts.sum() * codes.numel()
    found = torch.bincount(codes.flatten(), minlength=16)
    assert not found[counts == 0].any()
    spread = ((found - expected).square() / expected)[counts > 0].sum()
    assert spread < 20.5  # chi squared, 5 degrees of freedom: 1 in 1000
    # every place of every image alone: neighbours are as unlike as chance has it
    same = (codes[:, :, 1:] == codes[:, :, :-1]).double().mean()
    assert float(same) == pytest.approx(float((counts / 1000).square().sum()), abs=0.01)


def test_the_unigram_control_is_a_function_of_seed_and_number(tokenizer):
    counts = torch.arange(tokenizer.num_codes) + 1
    few, many = (
        UnigramImages(tokenizer, counts, (4, 4), torch.zeros(n, dtype=torch.int64), 7)
        for n in (64, 128)
    )
    assert torch.equal(all_of(few)[0].pixels, all_of(many)[0].pixels)
    other = UnigramImages(tokenizer, counts, (4, 4), few.labels, 8)
    assert not torch.equal(all_of(few)[0].pixels, all_of(other)[0].pixels)
    draws = Noise(7, torch.tensor([70])).uniform(UNIGRAM_CODES, torch.arange(16))
    share = counts.double() / counts.sum()
    codes = (draws.unsqueeze(-1) >= share.cumsum(0)).sum(-1).view(1, 4, 4)
    assert torch.equal(decode_pixels(tokenizer, codes)[0], all_of(many)[1].pixels[6])


def test_codes_are_counted_over_all_images(folder, tokenizer):
    source = FileImages(ImageSet.open(folder), 16)
    counts = count_codes(tokenizer, source, Setting())
    units = [tokenizer.encode(to_float(u.pixels)) for u in all_of(source)]
    expected = torch.bincount(torch.cat(units).flatten(), minlength=16)
    assert torch.equal(counts, expected) and int(counts.sum()) == NUM * 16


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_decoder_that_yields_no_numbers_is_refused(tokenizer, generator, bad):
    class Broken:
        config = tokenizer.config

        def decode(self, codes):
            images = tokenizer.decode(codes)
            images[-1, 0, 0, 0] = bad
            return images

    source = SampledImages(generator, Broken(), torch.zeros(3, dtype=torch.int64), 0, {"steps": 1})
    with pytest.raises(ValueError, match="finite pixels, found NaN or infinity; the decoder"):
        all_of(source)


# samples in folders


def test_samples_are_taken_as_they_are(tmp_path):
    folder = samples(tmp_path / "s", 5)
    Image.fromarray(pixels_of(1)[0, ..., 0]).save(folder / "00005.png")  # greyscale
    source = SampleFiles(folder)
    found = torch.cat([u.pixels for u in all_of(source)])
    assert source.side == 16 and torch.equal(
        found[:5], torch.from_numpy(pixels_of(5)).permute(0, 3, 1, 2)
    )
    grey = torch.from_numpy(pixels_of(1)[0, ..., 0])
    assert all(torch.equal(channel, grey) for channel in found[5])
    assert source.facts()["crop"] == "none" and source.facts()["count"] == 6


def test_the_sheet_beside_samples_is_none_of_them(tmp_path):
    folder = samples(tmp_path / "s", 3)
    Image.new("RGB", (34, 16)).save(folder / "grid.png")
    assert SampleFiles(folder).num == 3
    for path in folder.glob("0*.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"/s: expected samples, found none"):
        SampleFiles(folder)


def test_samples_of_two_sizes_are_refused_by_name(tmp_path):
    folder = samples(tmp_path / "s", 3)
    Image.new("RGB", (20, 16)).save(folder / "00001.png")
    with pytest.raises(ValueError, match=r"00001\.png: expected .* 16x16 .* found 20x16"):
        all_of(SampleFiles(folder))
    Image.new("RGB", (20, 16)).save(folder / "00000.png")
    with pytest.raises(ValueError, match="expected square samples, found 20x16"):
        SampleFiles(folder)


def test_a_first_sample_that_is_broken_decides_nothing(tmp_path):
    folder = samples(tmp_path / "s", 3)
    (folder / "00000.png").write_bytes(b"")
    source = SampleFiles(folder)
    (unit,) = all_of(source)
    assert source.side == 16 and len(unit.pixels) == 2
    assert len(unit.bad) == 1 and "00000.png: the file is empty" in unit.bad[0]
    for index in (1, 2):
        (folder / f"0000{index}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="the file is empty"):
        SampleFiles(folder)


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty, found none"):
        SampleFiles(tmp_path / "empty")


def test_saved_images_are_the_samples(tmp_path, tokenizer, generator):
    source = SampledImages(generator, tokenizer, torch.arange(70) % 3, 0, {"steps": 1})
    for _ in range(2):  # a second time over its own files
        found = torch.cat([u.pixels for u in all_of(SavedImages(source, tmp_path / "out"))])
    files = sorted((tmp_path / "out").iterdir())
    assert [p.name for p in files] == [f"{i:06d}.png" for i in range(70)]
    for path, image in zip(files, found):
        assert np.array_equal(np.asarray(Image.open(path)), image.permute(1, 2, 0).numpy())
    fewer = replace_num(source, 69)
    with pytest.raises(ValueError, match=r"out: expected .* other images, found 000069\.png"):
        SavedImages(fewer, tmp_path / "out")


def test_saved_images_keep_their_numbers_where_a_file_cannot_be_read(tmp_path):
    folder = samples(tmp_path / "s", 4)
    spoil(folder, "00001.png")
    (unit,) = all_of(SavedImages(SampleFiles(folder), tmp_path / "out"))
    assert unit.numbers.tolist() == [0, 2, 3]
    assert sorted(p.stem for p in (tmp_path / "out").iterdir()) == ["000000", "000002", "000003"]
    for index, image in zip((0, 2, 3), pixels_of(4)[[0, 2, 3]]):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"out/{index:06d}.png")), image)


@pytest.mark.parametrize("workers", [0, 1])
def test_image_numbers_skip_files_that_cannot_be_read(tmp_path, workers):
    folder = noisy(tmp_path / "photos", (60, 45, 30))
    spoil(folder, ImageSet.open(folder).name(66))
    first, second = FileImages(ImageSet.open(folder), 16, workers).units([range(64), range(64, 70)])
    assert first.numbers.tolist() == [*range(64)]
    assert second.first == 64 and second.numbers.tolist() == [64, 65, 67, 68, 69]
    assert second.labels.tolist() == [1] * 5


def replace_num(source, num):
    return SampledImages(
        source.generator, source.tokenizer, source.labels[:num], source.seed, source.options
    )


# array files


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_grey_arrays_become_rgb(tmp_path):
    pixels = pixels_of(4)[..., 0]
    for name, grey in (("flat", pixels), ("last", pixels[..., None])):
        found, classes, _ = open_npz(write(tmp_path / f"{name}.npz", arr_0=grey))
        assert found.shape == (4, 16, 16, 3) and classes is None
        assert all(np.array_equal(found[..., c], pixels) for c in range(3))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)])
def test_float_arrays_of_a_declared_range_equal_the_rounded_ones(tmp_path, kind, low, high):
    pixels = pixels_of(3)
    floats = (pixels / 255 * (high - low) + low).astype(kind)
    path = write(tmp_path / "f.npz", arr_0=floats)
    assert np.array_equal(open_npz(path, (low, high))[0], pixels)
    with pytest.raises(ValueError, match=r"f\.npz: expected uint8 .* found float.*--pixel-range"):
        open_npz(path)


def test_classes_of_arrays(tmp_path):
    path = tmp_path / "a.npz"
    source = ArrayImages(write(path, arr_0=pixels_of(4), arr_1=np.array([0, 2, 2, 1], np.int32)))
    assert source.num_classes == 3 and source.labels.tolist() == [0, 2, 2, 1]
    assert ArrayImages(write(path, arr_0=pixels_of(4))).num_classes == 0


GOOD = pixels_of(2)
FLOATS = GOOD / 127.5 - 1


def spotted(value):
    """Floats with that value in one place."""
    floats = FLOATS.copy()
    floats[1, 2, 3, 0] = value
    return floats


WRONG_ARRAYS = {
    "no images": ({"mu": np.zeros(3)}, "'arr_0', found mu"),
    "nothing": ({}, "'arr_0', found nothing"),
    "not square": ({"arr_0": GOOD[:, :8]}, r"square images .* found \(2, 8, 16, 3\)"),
    "channels first": ({"arr_0": GOOD.transpose(0, 3, 1, 2)}, r"found \(2, 3, 16, 16\)"),
    "one image": ({"arr_0": GOOD[0]}, r"square images .* found \(16, 16, 3\)"),
    "no rows": ({"arr_0": GOOD[:0]}, "'arr_0', found none"),
    "int16": ({"arr_0": GOOD.astype(np.int16)}, "uint8 images, found int16"),
    "objects": ({"arr_0": np.array([{}], object)}, "whole .npz file of arrays, found: Object"),
    "NaN": ({"arr_0": spotted(np.nan)}, "found NaN or inf"),
    "infinity": ({"arr_0": spotted(np.inf)}, "found NaN or inf"),
    "above": ({"arr_0": FLOATS + 1}, r"pixels in \[-1, 1\], found 0\.\d+ to 1\.\d+"),
    "below": ({"arr_0": FLOATS - 1}, r"pixels in \[-1, 1\], found -1\.\d+ to"),
    "one class": ({"arr_0": GOOD, "arr_1": np.array([1])}, r"classes \(2,\) .* found int64 \(1,\)"),
    "float classes": ({"arr_0": GOOD, "arr_1": np.zeros(2)}, "'arr_1', found float64"),
    "class below 0": ({"arr_0": GOOD, "arr_1": np.array([0, -3])}, "the least -3"),
}


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_wrong_arrays_are_refused(tmp_path, name):
    arrays, message = WRONG_ARRAYS[name]
    path = write(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(ValueError, match=rf"wrong\.npz: expected .*{message}") as error:
        open_npz(path, (-1.0, 1.0))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("low", "high"), [(1, 1), (1, -1), (float("nan"), 1), (0, float("inf")), (-float("inf"), 0)]
)
def test_a_range_that_is_none_is_refused(tmp_path, low, high):
    path = write(tmp_path / "f.npz", arr_0=np.ones((2, 16, 16, 3)))
    with pytest.raises(ValueError, match=f"--pixel-range: expected LOW below HIGH, found {low:g}"):
        open_npz(path, (float(low), float(high)))


def test_broken_array_files_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, arr_0=np.random.default_rng(0).integers(0, 255, (9, 16, 16, 3)))
    whole = path.read_bytes()
    middle = len(whole) // 2
    broken = {
        "truncated": whole[:middle],
        "flipped": whole[:middle] + bytes(64) + whole[middle + 64 :],
        "empty": b"",
        "text": b"not an archive",
    }
    for name, data in broken.items():
        path.write_bytes(data)
        for look in (open_npz, lambda p: read_npz(p, ["arr_0"])):
            with pytest.raises(ValueError, match=r"a\.npz: expected a whole \.npz file") as error:
                look(path)
        assert len(str(error.value).splitlines()) == 1, name
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="found: a single array"):
        npz_names(path)
    with pytest.raises(ValueError, match=r"absent\.npz: .* No such file"):
        npz_names(tmp_path / "absent.npz")


def test_looking_for_names_reads_no_array(tmp_path):
    path = write(tmp_path / "a.npz", arr_1=np.array([{}], object), arr_0=GOOD)
    assert npz_names(path) == ["arr_0", "arr_1"]
    assert list(read_npz(path, ("arr_0", "absent"))) == ["arr_0"]


# classes of samples


@pytest.mark.parametrize(
    "counts", [[1, 1, 1], [5, 3, 1], [100, 0, 7], [1, 1000], [12, 13, 100, 1, 1], [*range(40)]]
)
def test_every_prefix_of_the_classes_has_their_shares(counts):
    found = classes_like(torch.tensor(counts), 700, len(counts))
    assert found.shape == (700,) and found.dtype == torch.int64
    hits = torch.nn.functional.one_hot(found, len(counts)).cumsum(0).double()
    shares = torch.tensor(counts).double() / sum(counts)
    expected = torch.arange(1, 701).double().unsqueeze(1) * shares
    assert float((hits - expected).abs().max()) < 1
    assert torch.equal(found, classes_like(torch.tensor(counts), 700, len(counts)))
    assert torch.equal(found[:33], classes_like(torch.tensor(counts), 33, len(counts)))


def test_equal_classes_take_turns_as_in_semvq_sample():
    for num_classes in (2, 3, 14):
        expected = torch.arange(500) % num_classes
        assert torch.equal(classes_like(None, 500, num_classes), expected)
        equal = torch.full((num_classes,), 1300)
        assert torch.equal(classes_like(equal, 500, num_classes), expected)
    assert classes_like(None, 4, 0).tolist() == classes_like(None, 4, 1).tolist() == [0] * 4


# features


def test_features_do_not_depend_on_neighbours_or_chunks(monkeypatch):
    monkeypatch.setattr(features, "CLASSIFIER_SIZE", 64)
    net = features.load_network("mobilenet-v2", torch.device("cpu"))
    images = torch.from_numpy(pixels_of(40)).permute(0, 3, 1, 2)
    whole = net(images)
    assert whole.shape == (40, net.width) and whole.dtype == torch.float32
    for first, num in ((0, 1), (3, 2), (20, 13), (7, 33)):
        assert torch.equal(net(images[first : first + num]), whole[first : first + num])
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(images[order]), whole[order])
    assert torch.equal(net.fast(images)[32:], net.fast(images[32:]))


def test_fast_features_are_compared_once_with_exact_ones():
    class Off:
        """A network whose fast features are a tenth too large."""

        width = 3

        def __call__(self, images):
            return images[:, :, 0, 0].float()

        def fast(self, images):
            return self(images) * 1.1

    setting = Setting(Off(), fast=True)
    for _ in range(2):
        found = setting.features(torch.full((4, 3, 8, 8), 10, dtype=torch.uint8))
        assert torch.allclose(found, torch.full((4, 3), 11.0))
    assert setting.differences == [pytest.approx(0.1)]
    assert Setting(Off()).features(torch.zeros(2, 3, 8, 8)).shape == (2, 3)


# order


class Together(World):
    """Processes played by threads."""

    def __init__(self, rank, count, box, barrier):
        super().__init__(rank, count)
        self.box, self.barrier = box, barrier

    def to_writer(self, items):
        self.box[self.rank] = items
        self.barrier.wait(20)
        found = [x for part in self.box for x in part] if self.is_writer else []
        self.barrier.wait(20)
        return found


def in_threads(count, work):
    """`work(world)` in every one of `count` processes; the writer's error, if any."""
    box, barrier, errors = [None] * count, threading.Barrier(count), [None] * count

    def start(rank):
        try:
            work(Together(rank, count, box, barrier))
        except (ValueError, threading.BrokenBarrierError) as error:
            errors[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=start, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [e for e in errors if isinstance(e, ValueError)]
    if found:
        raise found[0]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 64, 130, 1000])
def test_results_arrive_in_the_order_of_the_images(folder, count, batch_size):
    source = FileImages(ImageSet.open(folder), 16)
    expected = [int(u.pixels.sum()) for u in all_of(source)]
    found, computed, seen = [], [], []

    def work(world):
        def compute(unit):
            computed.append(unit.first)
            return {"sum": unit.pixels.sum().view(1)}

        def consume(results):
            assert world.is_writer
            found.append(int(results["sum"]))

        progress = lambda title, done, total: seen.append((title, done, total))  # noqa: E731
        setting = Setting(world=world, batch_size=batch_size, progress=progress)
        in_order(source, compute, consume, setting, "adding")

    in_threads(count, work)
    assert found == expected and sorted(computed) == [0, 64, 128]
    assert seen[-1] == ("adding", NUM, NUM)


def spoil(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"no image")


@pytest.mark.parametrize("count", [1, 2])
def test_bad_files_are_left_out_and_named_once(tmp_path, count):
    folder = noisy(tmp_path / "photos", (60, 45, 30))
    spoil(folder, "green/7.png")
    settings = {}

    def work(world):
        setting = settings[world.rank] = Setting(toy_net(), world)
        for _ in range(2):
            found = measure(FileImages(ImageSet.open(folder), 16), setting, "measuring", 3)
        if found is not None:
            assert found.gaussian.num == NUM - 1 and found.class_counts.tolist() == [60, 44, 30]
            assert bool(found.features.isfinite().all())

    in_threads(count, work)
    (line,) = settings[0].bad
    assert "green/7.png: expected JPEG" in line


@pytest.mark.parametrize("count", [1, 2, 3])
def test_more_than_a_percent_of_bad_files_is_refused_whoever_meets_them(tmp_path, count):
    folder = noisy(tmp_path / "photos", (60, 45, 30))
    spoil(folder, "blue/0.png", "green/14.png")  # of the first and the second unit

    def work(world):
        measure(FileImages(ImageSet.open(folder), 16), Setting(toy_net(), world), "measuring")

    with pytest.raises(ValueError, match=r"2 of 135 images .* more than 1%: .*blue/0\.png"):
        in_threads(count, work)


def test_a_unit_without_a_good_file_and_a_source_without_one(tmp_path):
    folder = samples(tmp_path / "s", 1)
    spoil(folder, "00000.png")
    source = FileImages(ImageSet.open(folder), 16)
    (unit,) = all_of(source)
    assert unit.pixels.shape == (0, 3, 16, 16) and len(unit.labels) == 0
    with pytest.raises(ValueError, match=r"no image could be read; the first: .*00000\.png"):
        measure(source, Setting(toy_net()), "measuring")


def test_one_image_is_too_few_for_a_covariance(tmp_path):
    source = FileImages(ImageSet.open(samples(tmp_path / "s", 1)), 16)
    with pytest.raises(ValueError, match="at least 2 rows of features, found 1"):
        measure(source, Setting(toy_net()), "measuring")


def test_facts_name_what_features_depend_on():
    net = replace(toy_net(), resize="to 7")
    facts = Setting(net).feature_facts(16, {"images": "x"})
    assert facts == {
        "network": "toy", "weights": "a" * 64, "resize": "to 7", "precision": "float32",
        "pixels": "[-1, 1] rounded to uint8", "side": 16, "source": {"images": "x"},
    }  # fmt: skip
    assert Setting(net, fast=True).feature_facts(16, {})["precision"] == "bfloat16"
