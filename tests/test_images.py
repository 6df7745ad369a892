"""Images: what is converted, what is refused, and streams that depend on nothing but position."""

import io
import os
import tarfile
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from semvq.config import from_dict, to_dict
from semvq.data import order
from semvq.data.images import (
    BadImageError,
    DataConfig,
    ImageSet,
    TrainImages,
    Views,
    eval_batches,
    image_grid,
    load_image,
    open_train_val,
    png_bytes,
    save_png,
    split,
    stream,
    to_float,
    to_uint8,
)
from semvq.data.pixels import crop_resize, decode

AUGMENTED = DataConfig(resolution=16, min_crop=0.5, random_position=True, flip=True)
PLAIN = DataConfig(resolution=16)


def picture(seed: int = 0, size: tuple[int, int] = (24, 20)) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BILINEAR)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def folder_of(path, per_class: int = 6, classes=("a", "b", "c")):
    for c, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for i in range(per_class):
            picture(100 * c + i).save(path / name / f"{i}.png")
    return path


def tar_of(path, members: dict[str, bytes]):
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


# --- decoding -------------------------------------------------------------------------------


def test_cmyk_greyscale_and_animation_become_rgb():
    image = picture()
    assert decode(encoded(image.convert("CMYK"), "JPEG"), "x").shape == (20, 24, 3)
    grey = decode(encoded(image.convert("L")), "x")
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 1] == grey[..., 2]).all()
    frames = [Image.new("RGB", (12, 12), c) for c in ("red", "blue")]
    first = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "x")
    assert (first == (255, 0, 0)).all()


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    found = decode(encoded(Image.fromarray(ramp)), "x")[..., 0].astype(int)
    assert np.abs(found - ramp / 257).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_transparent_becomes_white(mode):
    image = Image.new("RGBA", (12, 12), (200, 10, 10, 255))
    image.paste((0, 0, 0, 0), (0, 0, 6, 12))
    kind = "TIFF" if mode == "PA" else "PNG"
    converted = image.convert(mode)
    if mode == "PA":
        converted.putalpha(image.getchannel("A"))  # Pillow before 12 converts to an opaque PA
    found = decode(encoded(converted, kind), "x")
    assert (found[:, :6] == 255).all()
    assert found[:, 6:, 0].max() < 255


def test_rotated_by_exif_stands_upright():
    image = Image.new("RGB", (16, 12), "blue")
    image.paste((255, 0, 0), (0, 0, 8, 12))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated a quarter turn clockwise
    found = decode(encoded(image, "PNG", exif=exif), "x")
    assert found.shape == (16, 12, 3)
    assert (found[:8] == (255, 0, 0)).all() and (found[8:] == (0, 0, 255)).all()


BAD = {
    "empty.jpg": b"",
    "text.jpg": b"this is no picture at all",
    "cut.jpg": encoded(picture(size=(64, 64)), "JPEG")[:-200],
    "cut.png": encoded(picture(size=(64, 64)))[:-60],
    "small.png": encoded(Image.new("RGB", (7, 20))),
    "long.png": encoded(Image.new("RGB", (400, 20))),
    "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n",
    "float.tif": encoded(Image.new("F", (20, 20)), "TIFF"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name(name):
    with pytest.raises(BadImageError, match=f"^some/{name}: "):
        decode(BAD[name], f"some/{name}")


@pytest.mark.filterwarnings("error")
def test_too_many_pixels_are_refused_from_the_header():
    data = encoded(Image.new("1", (10_000, 10_000)))
    start = time.perf_counter()
    with pytest.raises(BadImageError, match="at most 50000000 pixels, found 10000x10000"):
        decode(data, "x")
    assert time.perf_counter() - start < 0.1


# --- pixels ---------------------------------------------------------------------------------


def test_pixel_range_goes_there_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    assert to_float(values).min() == -1 and to_float(values).max() == 1
    assert torch.equal(to_uint8(to_float(values)), values)
    assert to_uint8(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


def test_a_png_holds_the_very_pixels(tmp_path):
    pixels = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(3, 4, 5)
    save_png(to_float(pixels), tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert data == png_bytes(to_float(pixels))
    found = np.asarray(Image.open(io.BytesIO(data), formats=["PNG"]))
    assert np.array_equal(found.transpose(2, 0, 1), pixels.numpy())


def test_resize_equals_pillows_and_the_crop_is_the_centre():
    image = np.asarray(picture(size=(60, 40)))
    expected = Image.fromarray(image[:, 10:50]).resize((16, 16), Image.Resampling.BICUBIC)
    found = crop_resize(image, 16)
    assert np.abs(found.astype(int) - np.asarray(expected)).max() <= 1
    assert np.array_equal(crop_resize(image, 40), image[:, 10:50]), "no resampling without need"


def test_crops_reach_every_corner():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4, 1).repeat(3, 2)
    last = np.nextafter(1, 0)
    assert crop_resize(image, 1, 1 / 3, 0, 0)[0, 0, 0] == 0
    assert crop_resize(image, 1, 1 / 3, last, last)[0, 0, 0] == 11


def test_image_grid_places_images():
    images = torch.stack([torch.full((3, 4, 5), v) for v in (-1.0, 0.0, 0.5)])
    sheet = image_grid(images, columns=2, gap=1)
    assert sheet.shape == (3, 9, 11)
    assert sheet[0, 0, 0] == -1 and sheet[0, 3, 6] == 0 and sheet[0, 5, 0] == 0.5
    assert sheet[0, 8, 10] == 1 and sheet[0, 4, 0] == 1


# --- sets -----------------------------------------------------------------------------------


def test_folder_and_tars_are_the_same_set(tmp_path):
    folder = folder_of(tmp_path / "photos")
    files = {f"{p.parent.name}/{p.name}": p.read_bytes() for p in sorted(folder.rglob("*.png"))}
    names = list(files)
    (tmp_path / "tars").mkdir()
    for i in range(2):
        # another order, a leading "./" and files beside the images change nothing
        part = {f"./{n}": files[n] for n in reversed(names[i::2])}
        tar_of(tmp_path / "tars" / f"part-{i}.tar", {**part, f"a/{i}.json": b"{}"})
    one = tar_of(tmp_path / "one.tar", files)
    sets = [ImageSet.open(p) for p in (folder, tmp_path / "tars", one, tmp_path / "tars" / "p*")]
    for found in sets:
        assert found.classes == ("a", "b", "c") and len(found) == 18
        assert [found.name(i) for i in range(18)] == names
        assert found.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
        assert found.fingerprint == sets[0].fingerprint
        assert all(np.array_equal(found.load(i), sets[0].load(i)) for i in range(18))


def test_fingerprint_sees_names_and_sizes(tmp_path):
    folder = folder_of(tmp_path / "photos")
    before = ImageSet.open(folder).fingerprint
    os.rename(folder / "a" / "0.png", folder / "a" / "9.png")
    renamed = ImageSet.open(folder).fingerprint
    picture(size=(30, 30)).save(folder / "a" / "9.png")
    assert len({before, renamed, ImageSet.open(folder).fingerprint}) == 3


def test_folder_without_classes(tmp_path):
    picture().save(tmp_path / "x.jpg")
    (tmp_path / "notes.txt").write_text("no image")
    found = ImageSet.open(tmp_path)
    assert found.classes == () and found.labels.tolist() == [0]


def test_subset_and_spread(tmp_path):
    images = ImageSet.open(folder_of(tmp_path / "photos"))
    few = images.spread(6)
    assert few.labels.tolist() == [0, 0, 1, 1, 2, 2] and few.classes == images.classes
    assert few.name(1) == images.name(3)
    assert len(images.spread(100)) == 18


def test_layout_mistakes(tmp_path):
    with pytest.raises(ValueError, match="found neither"):
        ImageSet.open(tmp_path / "nothing")
    with pytest.raises(ValueError, match="found none"):
        ImageSet.open(tmp_path)
    (tmp_path / "x.tar").write_bytes(b"no tar" * 500)
    with pytest.raises(ValueError, match="uncompressed tar"):
        ImageSet.open(tmp_path / "x.tar")
    both = folder_of(tmp_path / "both", classes=("train", "val"))
    with pytest.raises(ValueError, match="'train' and 'val'.*--val"):
        ImageSet.open(both)
    loose = folder_of(tmp_path / "loose")
    picture().save(loose / "x.png")
    with pytest.raises(ValueError, match="'x.png' beside the folder 'a'"):
        ImageSet.open(loose)
    (tmp_path / "tars").mkdir()
    for name in ("set-train-0.tar", "set-val-0.tar"):
        tar_of(tmp_path / "tars" / name, {"a/0.png": encoded(picture())})
    with pytest.raises(ValueError, match="found train and val; name one"):
        ImageSet.open(tmp_path / "tars")
    assert len(ImageSet.open(tmp_path / "tars" / "*train*")) == 1


def test_split_by_hash_is_stable(tmp_path):
    images = ImageSet.open(folder_of(tmp_path / "photos", per_class=30))
    train, val = split(images, 0.2)
    names = [{s.name(i) for i in range(len(s))} for s in (train, val)]
    assert len(names[0]) + len(names[1]) == 90 and not names[0] & names[1]
    assert 8 <= len(val) <= 30
    # other images come: nobody changes sides
    folder_of(tmp_path / "photos2", per_class=40)
    more = split(ImageSet.open(tmp_path / "photos2"), 0.2)
    assert names[1] <= {more[1].name(i) for i in range(len(more[1]))}
    with pytest.raises(ValueError, match="leaves one side empty"):
        split(images.subset([0]), 0.2)


def test_held_out_set_counts_in_the_training_classes(tmp_path):
    data = folder_of(tmp_path / "data")
    val = folder_of(tmp_path / "val", classes=("c",))
    train, held_out = open_train_val(data, val, PLAIN)
    assert held_out.classes == train.classes and set(held_out.labels) == {2}
    with pytest.raises(ValueError, match="among 'c' \\(1 in all\\), found class 'a'"):
        open_train_val(val, data, PLAIN)
    assert sum(map(len, open_train_val(data, None, PLAIN))) == 18


def test_config_travels_and_is_checked():
    assert from_dict(DataConfig, to_dict(AUGMENTED)) == AUGMENTED
    for mistake in ({"min_crop": 0.0}, {"min_crop": 1.5}, {"val_share": 1.0}, {"resolution": 0}):
        with pytest.raises(ValueError, match="expected .*found"):
            DataConfig(**{"resolution": 16, **mistake})


# --- streams --------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path) -> ImageSet:
    return ImageSet.open(folder_of(tmp_path / "photos"))


def take(batches, num: int) -> list[dict]:
    return [next(batches) for _ in range(num)]


def same(a: list[dict], b: list[dict]) -> bool:
    keys = ("image", "label", "index")
    return len(a) == len(b) and all(torch.equal(x[k], y[k]) for x, y in zip(a, b) for k in keys)


def test_every_epoch_is_a_permutation_and_another_one(images):
    data = TrainImages(images, AUGMENTED, seed=3)
    epochs = [[data[e * 18 + i]["index"] for i in range(18)] for e in range(3)]
    assert all(sorted(epoch) == list(range(18)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    other = TrainImages(images, AUGMENTED, seed=4)
    assert [other[i]["index"] for i in range(18)] != epochs[0]


def test_item_is_a_pure_function_of_the_position(images):
    data, again = (TrainImages(images, AUGMENTED, seed=3) for _ in range(2))
    far = again[40]
    assert torch.equal(data[2]["image"], again[2]["image"])
    assert torch.equal(data[40]["image"], far["image"])
    assert data[0]["image"].dtype == torch.uint8 and data[0]["image"].shape == (3, 16, 16)
    index = data[0]["index"]
    later = next(data[p] for p in range(18, 36) if data[p]["index"] == index)
    assert not torch.equal(data[0]["image"], later["image"]), "another crop in another epoch"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stream_resumes_anywhere(images, num_workers):
    data = TrainImages(images, AUGMENTED, seed=0)
    straight = take(stream(data, 0, 4), 12)  # beyond two epochs, and across their ends
    for start in (0, 3, 7):
        assert same(take(stream(data, 4 * start, 4, num_workers), 5), straight[start : start + 5])


def test_parts_together_are_the_whole(images):
    data = TrainImages(images, AUGMENTED, seed=0)
    whole = take(stream(data, 8, 4), 3)
    parts = [take(stream(data, 8, 2, part=(r, 2)), 3) for r in range(2)]
    for batch, *halves in zip(whole, *parts):
        assert torch.equal(batch["image"], torch.cat([h["image"] for h in halves]))


def test_flip_crop_and_position_are_drawn(images):
    def variants(**changes) -> set[bytes]:
        data = TrainImages(images.subset([0]), DataConfig(resolution=16, **changes), seed=0)
        return {data[p]["image"].numpy().tobytes() for p in range(24)}

    assert len(variants()) == 1
    flips = [np.frombuffer(v, np.uint8).reshape(3, 16, 16) for v in variants(flip=True)]
    assert len(flips) == 2 and np.array_equal(flips[0][:, :, ::-1], flips[1])
    assert len(variants(random_position=True)) == 5  # 24 x 20 pixels: four to spare
    assert len(variants(min_crop=0.5)) > 5


def test_eval_batches_are_centre_crops_in_order(images):
    found = list(eval_batches(images, AUGMENTED, 7))
    assert [len(b["image"]) for b in found] == [7, 7, 4]
    assert torch.cat([b["index"] for b in found]).tolist() == list(range(18))
    assert torch.cat([b["label"] for b in found]).tolist() == images.labels.tolist()
    expected = load_image(images.where(8), PLAIN)
    assert torch.equal(found[1]["image"][1], expected)
    assert same(found, list(eval_batches(images, PLAIN, 7, num_workers=2)))


def test_views_are_fixed_and_different(images):
    views = Views(images, AUGMENTED, 4)[5]["image"]
    assert torch.equal(views, Views(images, AUGMENTED, 4)[5]["image"])
    assert torch.equal(views[1], views[0].flip(2))
    assert len({v.numpy().tobytes() for v in views}) == 4
    with pytest.raises(ValueError, match="at most 1 views without random crops, found 2"):
        Views(images, PLAIN, 2)


# --- bad files in a set ---------------------------------------------------------------------


def spoil(images: ImageSet, *indices: int) -> None:
    for index in indices:
        (images.root / images.name(index)).write_bytes(b"spoilt")


def test_bad_image_is_replaced_by_the_next_and_named(images):
    spoil(images, 4)
    data = TrainImages(images, AUGMENTED, seed=0)
    items = [data[p] for p in range(18)]
    hit = [item for item in items if item["bad"]]
    assert len(hit) == 1 and hit[0]["index"] == 5
    assert str(images.root / "a" / "4.png") in hit[0]["bad"][0]
    batches = take(stream(data, 0, 6, num_workers=2), 3)
    assert sum((b["bad"] for b in batches), ()) == hit[0]["bad"]
    assert same(batches, take(stream(data, 0, 6), 3))


def test_bad_image_is_left_out_of_evaluation(images):
    spoil(images, 4)
    found = list(eval_batches(images, PLAIN, 3))
    assert torch.cat([b["index"] for b in found]).tolist() == [i for i in range(18) if i != 4]
    assert len(found[1]["bad"]) == 1


@pytest.mark.parametrize("num_workers", [0, 1])
def test_raise_policy_names_the_file(images, num_workers):
    spoil(images, 4)
    strict = DataConfig(resolution=16, bad_images="raise")
    with pytest.raises(ValueError, match=r"^\S+4\.png: ") as error:
        take(stream(TrainImages(images, strict, 0), 0, 6, num_workers), 3)
    assert "Traceback" not in str(error.value)
    with pytest.raises(ValueError, match="4.png"):
        list(eval_batches(images, strict, 6))


def test_more_than_a_hundredth_bad_ends_the_run(images):
    spoil(images, 4, 9)
    with pytest.raises(ValueError, match=r"2 of 18 images cannot be read, more than 1%.*4\.png"):
        take(stream(TrainImages(images, AUGMENTED, 0), 0, 6), 3)


def test_file_deleted_meanwhile_is_named(images):
    (images.root / images.name(4)).unlink()
    with pytest.raises(BadImageError, match="4.png: No such file"):
        images.load(4)


def test_all_bad_ends_instead_of_searching_for_ever(images):
    spoil(images, *range(18))
    with pytest.raises(ValueError, match="18 images in a row cannot be read"):
        TrainImages(images, AUGMENTED, 0)[0]


class Faulty(Dataset):
    """Its worker dies, or hangs, or has a bug."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 8

    def __getitem__(self, position: int) -> dict:
        if self.fault == "die":
            os._exit(1)
        if self.fault == "hang":
            time.sleep(2)
        raise KeyError("a bug")


def test_dead_or_hung_worker_is_named(monkeypatch):
    with pytest.raises(OSError, match="worker died or hung.*fewer workers$"):
        next(stream(Faulty("die"), 0, 2, num_workers=1))
    monkeypatch.setattr(order, "WORKER_TIMEOUT", 0.5)
    with pytest.raises(OSError, match="timed out.*smaller photos, or --workers 0"):
        next(stream(Faulty("hang"), 0, 2, num_workers=1))
    with pytest.raises(KeyError, match="a bug"):
        next(stream(Faulty("bug"), 0, 2, num_workers=1))


def test_small_sets_are_decoded_once(images, monkeypatch):
    assert images.load(0) is images.load(0)
    monkeypatch.setattr("semvq.data.folders.CACHE_BYTES", 0)
    assert images.load(1) is not images.load(1)
