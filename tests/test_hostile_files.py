"""A stranger's model files: refused in one line, no code run, no memory or time spent on them."""

import json
import pickle
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from semvq.files import write_atomically
from semvq.generators.ar import ARConfig
from semvq.generators.files import load_generator, save_generator
from semvq.generators.nar import NARConfig
from semvq.tokenizer.conv import ConvTokenizerConfig
from semvq.tokenizer.files import load_tokenizer, save_tokenizer, tokenizer_extra
from semvq.tokenizer.quantize import VectorQuantizerConfig

pytestmark = pytest.mark.slow

FAMILIES = {"tokenizer": load_tokenizer, "ar": load_generator, "nar": load_generator}
SECONDS, GROWTH = 10, 256 * 2**20  # what one refusal may cost, far below what the files ask for


class Payload:
    """Unpickled, it leaves a marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.marker), "w")


def saved(family: str, folder: Path) -> Path:
    torch.manual_seed(0)
    if family == "tokenizer":
        quantizer = VectorQuantizerConfig(num_codes=16, code_dim=8)
        config = ConvTokenizerConfig(
            resolution=16, channels=8, multipliers=(1, 2), blocks_per_level=1, middle_blocks=1,
            quantizer=quantizer,
        )  # fmt: skip
        save_tokenizer(config.build(), folder, {"classes": ["a"]})
    else:
        kind = {"ar": ARConfig, "nar": NARConfig}[family]
        model = kind(
            num_layers=1, width=16, num_heads=2, num_codes=11, grid_height=4, grid_width=3,
            num_classes=3,
        ).build()  # fmt: skip
        save_generator(model, folder, {"classes": ["a"]})
    FAMILIES[family](folder)  # whole before it is broken
    return folder


def refusal(load: Callable[[Path], object], path: Path) -> str:
    """The message, after a look at its form and at what it cost."""
    before, start = peak(), time.monotonic()
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        load(path)
    assert time.monotonic() - start < SECONDS
    assert peak() - before < GROWTH
    line = str(refused.value)
    assert line and "\n" not in line and len(line) < 2000
    assert not (path.parent / "marker").exists() and not (path / "marker").exists()
    return line


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_the_payload_is_live(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "marker"))).close()
    assert (tmp_path / "marker").exists()


# --- pickles ---


def payloads(folder: Path) -> dict[str, Callable[[Path], object]]:
    """Ways to write it: plain, as text (protocol 0), and as torch.save would."""
    payload = Payload(folder / "marker")
    return {
        "plain": lambda path: path.write_bytes(pickle.dumps(payload)),
        "text": lambda path: path.write_bytes(pickle.dumps(payload, protocol=0)),
        "torch": lambda path: torch.save({"state_dict": payload}, path),
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["plain", "text", "torch"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_pickles_under_the_names_of_a_run(tmp_path, family, way, name):
    folder = saved(family, tmp_path)
    payloads(folder)[way](folder / name)
    assert name in refusal(FAMILIES[family], folder)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "a.bin", "a.safetensors", "model.safetensors"])
def test_pickles_given_as_the_path(tmp_path, family, name):
    payloads(tmp_path)["torch"](tmp_path / name)
    assert "found a " in refusal(FAMILIES[family], tmp_path / name)


# --- safetensors ---


def header_of(whole: bytes) -> tuple[dict, bytes]:
    size = struct.unpack("<Q", whole[:8])[0]
    return json.loads(whole[8 : 8 + size]), whole[8 + size :]


def with_header(header: object, data: bytes, size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def first(header: dict) -> dict:
    return header[next(name for name in header if name != "__metadata__")]


def past_the_end(header, data):
    first(header)["data_offsets"] = [len(data), len(data) + 2**40]
    return with_header(header, data)


def overlapping(header, data):
    for entry in (e for name, e in header.items() if name != "__metadata__"):
        begin, end = entry["data_offsets"]
        entry["data_offsets"] = [0, end - begin]
    return with_header(header, data)


def backwards(header, data):
    first(header)["data_offsets"].reverse()
    return with_header(header, data)


def overflowing(header, data):
    first(header)["shape"] = [2**40, 2**40]
    return with_header(header, data)


def odd_type(header, data):
    first(header)["dtype"] = "PICKLE"
    return with_header(header, data)


def line_breaks(header, data):
    header["evil\nname\r\n" * 1000] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return with_header(header, data)


BROKEN = {
    "empty": lambda h, d: b"",
    "seven bytes": lambda h, d: b"\0" * 7,
    "header of 2^60": lambda h, d: with_header(h, d, size=2**60),
    "header of 2^64 - 1": lambda h, d: with_header(h, d, size=2**64 - 1),
    "header not JSON": lambda h, d: with_header(b"{" * 100, d),
    "header not text": lambda h, d: with_header(b"\xff\xfe" * 50, d),
    "header a list": lambda h, d: with_header([1, 2], d),
    "header nested": lambda h, d: with_header(b'{"a":' * 100_000, d),
    "offsets past the end": past_the_end,
    "offsets overlapping": overlapping,
    "offsets backwards": backwards,
    "shape overflowing": overflowing,
    "unknown type": odd_type,
    "line breaks in a name": line_breaks,
    "data cut": lambda h, d: with_header(h, d[:-9]),
    "data longer": lambda h, d: with_header(h, d + b"\0" * 64),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", BROKEN)
def test_broken_safetensors(tmp_path, family, how):
    weights = saved(family, tmp_path) / "model.safetensors"
    weights.write_bytes(BROKEN[how](*header_of(weights.read_bytes())))
    assert "model.safetensors" in refusal(FAMILIES[family], tmp_path)


def without(tensors, name):
    del tensors[name]


CHANGES = {
    "type float64": lambda t, n: t.update({n: t[n].double()}),
    "type int32": lambda t, n: t.update({n: t[n].int()}),
    "type bool": lambda t, n: t.update({n: t[n] > 0}),
    "shape longer": lambda t, n: t.update({n: torch.cat([t[n], t[n]])}),
    "shape flat": lambda t, n: t.update({n: t[n].flatten()}),
    "shape empty": lambda t, n: t.update({n: t[n][:0]}),
    "missing": without,
    "unknown": lambda t, n: t.update({"__class__": torch.zeros(1)}),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("change", CHANGES)
def test_tensors_of_another_model(tmp_path, family, change):
    weights = saved(family, tmp_path) / "model.safetensors"
    tensors = load_file(weights)
    name = next(n for n, t in sorted(tensors.items()) if t.ndim == 2 or t.ndim == 4)
    CHANGES[change](tensors, name)
    save_file(tensors, weights)
    line = refusal(FAMILIES[family], tmp_path)
    assert "model.safetensors" in line and change.split()[0] in line  # said as what it is
    assert ("__class__" if change == "unknown" else name) in line


# --- config.json ---


def edit(folder: Path, family: str, path: str, value: object) -> None:
    """Set a dotted key of the model's configuration; `value` in JSON where it is bytes."""
    file = folder / "config.json"
    record = json.loads(file.read_text())
    *parents, last = path.split(".")
    tree = record["config" if family == "tokenizer" else "generator"]
    for key in parents:
        tree = tree[key]
    tree[last] = "@" if isinstance(value, bytes) else value
    text = json.dumps(record)
    if isinstance(value, bytes):
        assert text.count('"@"') == 1
        text = text.replace('"@"', value.decode())
    write_atomically(file, text)


GENERATOR_SIZES = [
    ("num_layers", 10**6),
    ("num_layers", 1000),  # just allowed
    ("width", 10**9),
    ("width", 2**62),
    ("num_codes", 10**12),
    ("num_codes", 2**62),
    ("num_classes", 10**12),
    ("grid_height", 10**9),
    ("grid_width", 2**62),
    ("num_layers", -1),
]
TOKENIZER_SIZES = [
    ("channels", 10**9),
    ("channels", 65_536 // 2),  # just allowed
    ("quantizer.num_codes", 10**12),
    ("quantizer.num_codes", 2**62),
    ("quantizer.code_dim", 10**12),
    ("quantizer.code_dim", 2**62),
    ("blocks_per_level", 10**6),
    ("middle_blocks", 10**9),
    ("decoder_attention_pairs", 10**6),
    ("multipliers", [1] * 10**6),
    ("multipliers", [2**40, 2]),
    ("attention_heads", 0),
    ("resolution", 2**62),
]
SIZES = [("tokenizer", *case) for case in TOKENIZER_SIZES] + [
    (family, *case) for family in ("ar", "nar") for case in GENERATOR_SIZES
]


@pytest.mark.parametrize(("family", "path", "value"), SIZES)
def test_absurd_sizes_cost_nothing(tmp_path, family, path, value):
    edit(saved(family, tmp_path), family, path, value)
    refusal(FAMILIES[family], tmp_path)


def test_the_deepest_tokenizer_allowed_costs_nothing(tmp_path):
    folder = saved("tokenizer", tmp_path)
    deep = {"blocks_per_level": 1000, "middle_blocks": 1000, "decoder_extra_blocks": 1000}
    deep |= {"decoder_attention_pairs": 1000, "attention_heads": 1, "multipliers": [1] * 10}
    for path, value in (deep | {"resolution": 512, "channels": 1}).items():
        edit(folder, "tokenizer", path, value)
    start = time.monotonic()
    assert "42000 blocks" in refusal(load_tokenizer, folder)  # 24 s and 0.7 GB to build
    assert time.monotonic() - start < 1


NUMBERS = [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"1" * 400, b"9" * 5000, b"-" + b"9" * 400]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: n[:9].decode())
@pytest.mark.parametrize(
    ("family", "path"),
    [("tokenizer", "quantizer.entropy_weight"), ("ar", "dropout"), ("nar", "label_smoothing")],
)
def test_numbers_that_are_none(tmp_path, family, path, number):
    edit(saved(family, tmp_path), family, path, number)
    assert "config.json: expected JSON" in refusal(FAMILIES[family], tmp_path)


KINDS = [["a"], {"a": 1}, None, 5, True, "object", "Config", "a\nb", "x" * 10**6]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: str(k)[:10])
@pytest.mark.parametrize("family", FAMILIES)
def test_kinds_that_are_none(tmp_path, family, kind):
    edit(saved(family, tmp_path), family, "kind", kind)
    refusal(FAMILIES[family], tmp_path)


def nested(folder: Path, opening: str, closing: str, key: str) -> None:
    file = folder / "config.json"
    record = json.loads(file.read_text()) | {key: "@"}
    text = json.dumps(record).replace('"@"', opening * 200_000 + "1" + closing * 200_000)
    write_atomically(file, text)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ("[", "")])
def test_deeply_nested_json(tmp_path, family, opening, closing):
    nested(saved(family, tmp_path), opening, closing, "extra")
    assert "nested too deeply" in refusal(FAMILIES[family], tmp_path)


def test_a_nested_neighbour_does_not_hide_the_message(tmp_path):
    nested(saved("ar", tmp_path / "evil"), "[", "]", "extra")
    saved("ar", tmp_path / "good")
    line = refusal(load_generator, tmp_path / "absent")
    assert "absent" in line and "good" in line and "evil" not in line


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["null", "[]", '"a"', "1", "{}", "", "\ufeff{}", "{'a': 1}"])
def test_json_that_is_no_record(tmp_path, family, text):
    (saved(family, tmp_path) / "config.json").write_text(text)
    assert "config.json" in refusal(FAMILIES[family], tmp_path)


def test_a_huge_config_is_not_read(tmp_path):
    folder = saved("tokenizer", tmp_path)
    with (folder / "config.json").open("r+b") as file:
        file.truncate(2**40)  # sparse
    assert "bytes of JSON" in refusal(load_tokenizer, folder)


@pytest.mark.parametrize("value", [None, 1, [], {}, "", "a\nb"], ids=repr)
@pytest.mark.parametrize("key", ["config", "code_space_hash", "weights_sha256"])
def test_facts_of_another_type(tmp_path, key, value):
    file = saved("tokenizer", tmp_path) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    refusal(load_tokenizer, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [None, 1, [], "a"], ids=repr)
def test_an_extra_that_is_no_object(tmp_path, family, value):
    file = saved(family, tmp_path) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"extra": value}))
    assert "expected an object as extra" in refusal(FAMILIES[family], tmp_path)
    if family == "tokenizer":
        refusal(tokenizer_extra, tmp_path)
