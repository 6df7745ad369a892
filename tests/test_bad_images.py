"""What any image file may hold: every convertible kind with its pixel values, broken and hostile

files in constant memory and time, and what the commands say of bad files. Bad files among many in
a stream: `test_bad_files.py`.
"""

import io
import random
import re
import shutil
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from semvq.cli import main
from semvq.data.pixels import BadImageError, decode
from tests.test_images import encoded, folder_of, picture

pytestmark = pytest.mark.slow

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def png(colour_type: int, pixels: np.ndarray, bits: int = 16, extra: bytes = b"") -> bytes:
    """A PNG file in a form that Pillow reads but does not write."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2" if bits == 16 else np.uint8)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), extra, chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def ramp(*shape: int) -> np.ndarray:
    return np.linspace(0, 65535, int(np.prod(shape))).astype(np.uint16).reshape(shape)


# --- what is converted, in values -----------------------------------------------------------


@pytest.mark.parametrize(("kind", "exact"), [("TIFF", 0), ("JPEG", 3)])
def test_cmyk_keeps_its_colours(kind, exact):
    """Photoshop's inverted CMYK of JPEG files, too."""
    colours = [(200, 50, 20), (10, 240, 90), (0, 0, 0), (255, 255, 255)]
    image = Image.new("RGB", (32, 16))
    for i, colour in enumerate(colours):
        image.paste(colour, (8 * i, 0, 8 * i + 8, 16))
    options = {"quality": 100} if kind == "JPEG" else {}
    found = decode(encoded(image.convert("CMYK"), kind, **options), "x").astype(int)
    for i, colour in enumerate(colours):
        assert np.abs(found[8, 8 * i + 4] - colour).max() <= exact


def test_sixteen_bits_of_every_layout_are_scaled():
    grey, rgb = ramp(16, 16), ramp(16, 16, 3)
    for data in (png(0, grey), encoded(Image.fromarray(grey), "TIFF")):
        assert np.abs(decode(data, "x")[..., 0] - grey / 257).max() <= 0.5
    # Pillow keeps the high byte of 16-bit colour: within one level
    assert np.abs(decode(png(2, rgb), "x") - rgb / 257).max() < 1
    pgm = b"P5 16 16 65535\n" + grey.astype(">u2").tobytes()
    assert np.abs(decode(pgm, "x")[..., 0] - grey / 257).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [2, 4])
def test_half_transparent_is_mixed_with_white(bits, channels):
    top = 2**bits - 1
    pixels = np.zeros((12, 12, channels), np.int64)
    pixels[..., -1] = top
    pixels[:, :4, -1] = 0
    pixels[:, 4:8, -1] = top // 2
    found = decode(png({2: 4, 4: 6}[channels], pixels, bits), "x").astype(int)
    assert (found[:, :4] == 255).all() and (found[:, 8:] == 0).all()
    assert np.abs(found[:, 4:8] - 128).max() <= 1


def test_palette_with_alpha_per_entry_is_laid_on_white():
    image = Image.new("P", (12, 12))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    for entry in range(3):
        image.paste(entry, (4 * entry, 0, 4 * entry + 4, 12))
    found = decode(encoded(image, "PNG", transparency=bytes([128, 0, 255])), "x")
    assert np.abs(found[0, 0].astype(int) - (255, 127, 127)).max() <= 1
    assert tuple(found[0, 5]) == WHITE and tuple(found[0, 9]) == BLUE


def test_one_transparent_colour_is_white():
    image = Image.new("RGB", (12, 12), "red")
    image.paste(BLUE, (0, 0, 6, 12))
    found = decode(encoded(image, "PNG", transparency=BLUE), "x")
    assert (found[:, :6] == 255).all() and tuple(found[0, 8]) == RED


# where the red corner of the stored image, its top left, is seen
CORNERS = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0),
           5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}  # fmt: skip


@pytest.mark.parametrize("orientation", CORNERS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_exif_orientation_stands_upright(kind, orientation):
    image = Image.new("RGB", (32, 16), "blue")
    image.paste(RED, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    options = {"exif": exif} | lossless.get(kind, {})
    found = decode(encoded(image, kind, **options), "x").astype(int)
    assert found.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
    assert np.abs(found[CORNERS[orientation]] - RED).max() < 10
    corners = [tuple(found[y, x]) for y in (0, -1) for x in (0, -1)]
    assert sum(np.abs(np.subtract(c, RED)).max() < 10 for c in corners) == 1


@pytest.mark.parametrize("mode", ["1", "L"])
def test_greyscale_is_three_equal_channels(mode):
    image = Image.new("L", (16, 16), 0)
    image.paste(255 if mode == "1" else 77, (8, 0, 16, 16))
    found = decode(encoded(image.convert(mode)), "x")
    assert set(found[:, :8].ravel()) == {0}
    assert set(found[:, 8:].ravel()) == {255 if mode == "1" else 77}


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (12, 12), colour) for colour in ("red", "blue", "white")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3, "no animation was made"
    assert (decode(data, "x") == RED).all()


# --- broken and hostile ---------------------------------------------------------------------

WHOLE = {
    "jpg": encoded(picture(size=(64, 48)), "JPEG"),
    "progressive.jpg": encoded(picture(size=(64, 48)), "JPEG", progressive=True),
    "png": encoded(picture(size=(64, 48))),
    "gif": encoded(picture(size=(64, 48)), "GIF"),
    "tif": encoded(picture(size=(64, 48)), "TIFF", compression="tiff_lzw"),
    "webp": encoded(picture(size=(64, 48)), "WEBP"),
    "bmp": encoded(picture(size=(64, 48)), "BMP"),
    "ppm": encoded(picture(size=(64, 48)), "PPM"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_cut_at_any_place_is_refused_or_loses_no_pixel(kind):
    """Where every pixel is there, a lost end mark may pass; grey stripes may not."""
    data = WHOLE[kind]
    whole = decode(data, "x")
    refused = 0
    cuts = range(0, len(data), max(1, len(data) // 120))
    for cut in cuts:
        try:
            found = decode(data[:cut], "x")
        except BadImageError as error:
            refused += 1
            assert str(error).startswith("x: ") and "\n" not in str(error)
        else:
            assert np.array_equal(found, whole), f"cut at {cut} of {len(data)}"
    assert refused > 0.9 * len(cuts)


@pytest.mark.parametrize("kind", WHOLE)
def test_random_damage_is_an_image_or_a_bad_image(kind, recwarn):
    """Nothing else comes out, no nameless warning; most formats cannot tell a flipped bit."""
    chance = random.Random(0)
    for _ in range(150):
        data = bytearray(WHOLE[kind])
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            found = decode(bytes(data), "x")
        except BadImageError as error:
            assert str(error).startswith("x: ") and len(str(error)) > 5
        else:
            assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
    assert not recwarn.list, recwarn.list[0]


GIF = encoded(picture(), "GIF")
BOMB = zlib.compress(bytes(300_000_000), 9)
SQUARE = np.zeros((16, 16, 3), np.int64)
HOSTILE = {
    "text of 300 MB": png(2, SQUARE, 8, chunk(b"zTXt", b"a\0\0" + BOMB)),
    "international text of 300 MB": png(2, SQUARE, 8, chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)),
    "colour profile of 300 MB": png(2, SQUARE, 8, chunk(b"iCCP", b"a\0\0" + BOMB)),
    "pixels of 300 MB": png(2, SQUARE, 8).replace(b"IDAT", b"IDAx")
    + chunk(b"IDAT", BOMB),
    "GIF of 65535 x 65535": GIF[:6] + b"\xff" * 4 + GIF[10:],
    "BMP of 2^31": b"BM" + bytes(12) + struct.pack("<IiiHH", 40, 2**31 - 1, 2**31 - 1, 1, 24)
    + bytes(24),
    "PPM of 10^15": b"P6 1000000000000000 1000000000000000 255\n",
    "PPM of a long number": b"P6 " + b"9" * 10**6 + b" 1 255\n",
    "TIFF of 10^9 tags": b"II*\0\x08\0\0\0" + struct.pack("<H", 65535) + bytes(64),
    "TIFF that goes in circles": b"II*\0\x08\0\0\0" + struct.pack("<HI", 0, 8),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bomb_takes_neither_memory_nor_time(name):
    tracemalloc.start()
    began = time.monotonic()
    try:
        decode(HOSTILE[name], "x")
    except BadImageError as error:
        assert len(str(error)) < 2000
        # Pillow's own memory is not traced: refused from the header it takes none
        from_header = re.search("at most 50000000 pixels|exceeds limit", str(error))
        assert from_header or not name.startswith(("GIF", "BMP"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6 and time.monotonic() - began < 2


def test_comments_do_not_make_an_image_bad():
    notes = PngImagePlugin.PngInfo()
    notes.add_text("a", "b" * 1000)
    assert decode(encoded(picture(), "PNG", pnginfo=notes), "x").shape == (20, 24, 3)


# --- commands -------------------------------------------------------------------------------


def ends_with_one_line(capsys, command: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in error
    (line,) = (x for x in error.splitlines() if "error: " in x)
    return line


@pytest.mark.parametrize("workers", [0, 2])
def test_two_per_cent_bad_end_the_command_with_their_number(tmp_path, capsys, workers):
    folder = folder_of(tmp_path / "photos", per_class=50)
    for i in range(10, 13):
        (folder / "a" / f"{i}.png").write_bytes(b"spoilt")
    val = folder_of(tmp_path / "val", per_class=2)
    line = ends_with_one_line(
        capsys,
        f"train tests/kill_recipes.py:kill_phase1 --set loop.duration=160images --data {folder} "
        f"--val {val} --out {tmp_path / 'run'} --workers {workers} --device cpu",
    )
    assert re.search("[23] of 150 images cannot be read, more than 1%: ", line), line
    assert str(folder / "a") in line and line.endswith("repair or remove them")


def test_all_bad_and_raise_are_one_line_too(tmp_path, capsys):
    folder = folder_of(tmp_path / "photos", per_class=3)
    val = folder_of(tmp_path / "val", per_class=2)
    shutil.copy(folder / "b" / "0.png", folder / "b" / "1.png")
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    common = f"train tests/kill_recipes.py:kill_phase1 --data {folder} --val {val} --device cpu"
    line = ends_with_one_line(capsys, f"{common} --out {tmp_path / 'a'}")
    assert "9 images in a row cannot be read, the first" in line and "the file is empty" in line
    line = ends_with_one_line(
        capsys, f"{common} --out {tmp_path / 'b'} --set task.data.bad_images=raise"
    )
    assert f"{folder}/" in line and line.endswith("the file is empty")
