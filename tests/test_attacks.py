"""A stranger's files where a command or a cache reads them: one line, no payload run, no memory.

Model files themselves, format by format: `test_hostile_files.py`; tars: `test_streaming.py`.
"""

import hashlib
import io
import json
import pickle
import resource
import shutil
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from semvq import cli
from semvq.data.tokens import TokenCache
from semvq.training.runs import train_recipe
from tests.forks import Spoken, watched
from tests.test_hostile_files import Payload, edit, payloads
from tests.toy import photos, toy_generator, toy_phase1

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "tests" / "kill_recipes.py"
GROWTH = 100 * 2**20  # bytes that a refusal may take


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Photos, and a finished tokenizer and AR run that share them."""
    place = tmp_path_factory.mktemp("attacks")
    photos(place / "photos")
    for recipe in (toy_phase1(), toy_generator("ar")):
        assert train_recipe(recipe, place / recipe.name, data=place / "photos") is None
    return place


# --- token caches ---------------------------------------------------------------------------


@pytest.fixture
def cache(place, tmp_path) -> Path:
    shutil.copytree(place / "toy_ar" / "tokens" / "train", tmp_path / "cache")
    assert len(TokenCache.open(tmp_path / "cache")) > 10
    return tmp_path / "cache"


def refusal(folder: Path) -> str:
    before, began = peak(), time.monotonic()
    with pytest.raises(ValueError) as error:
        TokenCache.open(folder)
    assert peak() - before < GROWTH and time.monotonic() - began < 5
    assert not (folder.parent / "marker").exists()
    line = str(error.value)
    assert line.startswith((str(folder), "expected")) and "\n" not in line and len(line) < 1000
    return line


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def put(cache: Path, name: str, data: bytes) -> None:
    """Replace an array file, and let the facts agree with it."""
    (cache / name).write_bytes(data)
    facts = json.loads((cache / "cache.json").read_text())
    facts["sizes"][name] = len(data)
    (cache / "cache.json").write_text(json.dumps(facts))


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


def objects(marker: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload(marker)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def zipped(marker: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("arr_0.npy", objects(marker))
    return buffer.getvalue()


ARRAYS = {
    "objects": objects,
    "pickle": lambda marker: pickle.dumps(Payload(marker)),
    "zip of objects": zipped,
    "empty": lambda marker: b"",
    "text": lambda marker: b"no array",
    "shape of 2^60": lambda m: npy("{'descr': '<u2', 'fortran_order': False, 'shape': (1<<60,)}"),
    "shape of 10^15": lambda m: npy(
        "{'descr': '<u2', 'fortran_order': False, 'shape': (1000000000000000, 1, 4, 4)}"
    ),
    "negative shape": lambda m: npy(
        "{'descr': '<u2', 'fortran_order': False, 'shape': (-1, 2, 4, 4)}", bytes(64)
    ),
    "code in the header": lambda m: npy(
        f"{{'descr': __import__('os').system('touch {m}'), 'shape': (1,)}}"[:116]
    ),
    "header cut": lambda m: b"\x93NUMPY\1\0\xff\xff{'descr'",
    "nested header": lambda m: npy("(" * 100),
    "floats": lambda m: npy("{'descr': '<f4', 'fortran_order': False, 'shape': (18, 2, 4, 4)}",
                            bytes(18 * 2 * 16 * 4)),
    "text in the array": lambda m: npy(
        "{'descr': '<U1', 'fortran_order': False, 'shape': (18, 2, 4, 4)}", bytes(18 * 32 * 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", ["codes.npy", "labels.npy"])
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_that_are_none(cache, name, kind):
    put(cache, name, ARRAYS[kind](cache.parent / "marker"))
    refusal(cache)


WRONG = [None, -1, 10**30, 1.5, "a", [], {}, [1, 2, 3], [10**12, 10**12], "x\ny" * 10**4]
FACTS = ("code_space_hash", "num_codes", "grid", "num_views", "num_images", "classes",
         "fingerprint", "sizes", "bad")  # fmt: skip


@pytest.mark.parametrize("key", FACTS)
@pytest.mark.parametrize("value", WRONG, ids=lambda v: str(v)[:12])
def test_facts_of_another_kind(cache, key, value):
    facts = json.loads((cache / "cache.json").read_text())
    if value == [] and key in ("classes", "bad"):
        return  # as it may be
    (cache / "cache.json").write_text(json.dumps(facts | {key: value}))
    if value == "a" and key in ("code_space_hash", "fingerprint"):
        TokenCache.open(cache)  # any short text may be the name of a space
    else:
        line = refusal(cache)
        assert f"as {key}, found" in line or "expected codes" in line, line


@pytest.mark.parametrize(
    "text", [b"[]", b"null", b"3", b"\xff\xfe", b"[" * 200_000, b'{"a": ' * 200_000, b"NaN"]
)
def test_facts_that_are_no_object(cache, text):
    (cache / "cache.json").write_bytes(text)
    assert "cache.json" in refusal(cache)


def test_labels_beyond_the_classes(cache):
    labels = np.load(cache / "labels.npy")
    for wrong in (-1, 3, 2**60):
        labels[3] = wrong
        np.save(cache / "labels.npy", labels)
        assert f"labels from 0 to 2, found {wrong}" in refusal(cache)


# --- commands -------------------------------------------------------------------------------


def refused(place: Path, run: Path, command: str) -> str:
    """The one line of a command on a run that was tampered with."""
    line = command.format(run=run, place=place)
    done = Spoken(line.split(), run.parent, watched).end()
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = (x for x in done.stderr.splitlines() if "error: " in x)
    assert len(line) < 2500
    assert not list(run.parent.rglob("marker")), "the payload ran"
    grown = int(done.stdout.split("grown ")[1]) * 1024
    assert grown < GROWTH + 60 * 2**20, f"{grown / 2**20:.0f} MB taken"  # an import or two
    return line


def hungry(command: list[str]) -> None:
    cli.main = lambda _: b"x" * 2 * GROWTH
    watched(command)


def test_the_watch_sees_what_a_command_takes(tmp_path):
    done = Spoken([], tmp_path, hungry).end()
    assert int(done.stdout.split("grown ")[1]) * 1024 > 1.9 * GROWTH


def swap(name: str, way: str):
    return lambda run: payloads(run)[way](run / name)


def config(path: str, value: object):
    family = "tokenizer" if path.startswith(("channels", "quantizer", "middle")) else "ar"
    return lambda run: edit(run, family, path, value)


def truncated(run: Path) -> None:
    with (run / "model.safetensors").open("r+b") as file:
        file.truncate(3000)


def long_header(run: Path) -> None:
    with (run / "model.safetensors").open("r+b") as file:
        file.write(struct.pack("<Q", 2**60))


WEIGHTS, CONFIG = "model.safetensors", "config.json"
RECONSTRUCT = "reconstruct {run} {place}/photos/red/0.png --device cpu"
SAMPLE = "sample {run} --device cpu"
ENCODE = "encode {run} --data {place}/photos --out {run}/tokens"
TRAIN = f"train {RECIPES}:kill_ar --data {{place}}/photos --upstream {{run}} --out {{run}}/new"
PROBE = "probe {run} --data {place}/photos --device cpu"
DECODER = "sample {place}/toy_ar --decoder {run} --device cpu"
TOKENIZER, AR = "toy_phase1", "toy_ar"
ATTACKS = {
    "reconstruct a pickle": (TOKENIZER, swap(WEIGHTS, "torch"), RECONSTRUCT),
    "reconstruct a plain pickle": (TOKENIZER, swap(WEIGHTS, "plain"), RECONSTRUCT),
    "reconstruct a pickled config": (TOKENIZER, swap(CONFIG, "text"), RECONSTRUCT),
    "reconstruct wide": (TOKENIZER, config("channels", 10**9), RECONSTRUCT),
    "reconstruct with codes": (TOKENIZER, config("quantizer.num_codes", 10**12), RECONSTRUCT),
    "reconstruct deep": (TOKENIZER, config("middle_blocks", 10**9), RECONSTRUCT),
    "reconstruct cut": (TOKENIZER, truncated, RECONSTRUCT),
    "encode a long header": (TOKENIZER, long_header, ENCODE),
    "train on a pickle": (TOKENIZER, swap(WEIGHTS, "torch"), TRAIN),
    "decode by a pickle": (TOKENIZER, swap(WEIGHTS, "torch"), DECODER),
    "sample a pickle": (AR, swap(WEIGHTS, "torch"), SAMPLE),
    "sample a pickled config": (AR, swap(CONFIG, "plain"), SAMPLE),
    "sample deep": (AR, config("num_layers", 10**6), SAMPLE),
    "sample wide": (AR, config("width", 2**40), SAMPLE),
    "sample with codes": (AR, config("num_codes", 10**12), SAMPLE),
    "sample a long grid": (AR, config("grid_height", 10**9), SAMPLE),
    "sample NaN": (AR, config("dropout", b"NaN"), SAMPLE),
    "sample a .pt": (AR, swap("evil.pt", "torch"), SAMPLE.replace("{run}", "{run}/evil.pt")),
    "sample a .ckpt": (AR, swap("evil.ckpt", "plain"), SAMPLE.replace("{run}", "{run}/evil.ckpt")),
    "sample a .bin": (AR, swap("evil.bin", "text"), SAMPLE.replace("{run}", "{run}/evil.bin")),
    "probe a pickle": (AR, swap(WEIGHTS, "torch"), PROBE),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_a_command_refuses_a_tampered_run(place, tmp_path, name):
    source, tamper, command = ATTACKS[name]
    run = tmp_path / source
    shutil.copytree(place / source, run)
    shutil.copytree(place / "toy_phase1", tmp_path / "toy_phase1", dirs_exist_ok=True)
    tamper(run)
    refused(place, run, command)


def damage_recipe(text: bytes):
    return lambda run: (run / "recipe.json").write_bytes(text)


def edit_recipe(path: str, value: object):
    def change(run: Path) -> None:
        record = json.loads((run / "recipe.json").read_text())
        *parents, last = path.split(".")
        tree = record["recipe"]
        for key in parents:
            tree = tree[key]
        tree[last] = value
        (run / "recipe.json").write_text(json.dumps(record))

    return change


def pickled_checkpoint(run: Path) -> None:
    """A checkpoint of which every file was swapped, with a manifest that agrees."""
    path = next((run / "checkpoints").iterdir())
    payloads(run)["torch"](path / "tensors.safetensors")
    manifest = {}
    for name in ("tensors.safetensors", "scalars.json"):
        data = (path / name).read_bytes()
        manifest[name] = f"{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}"
    (path / "manifest.json").write_text(json.dumps(manifest))


RESUMED = {
    "recipe a list": damage_recipe(b"[]"),
    "recipe a number": damage_recipe(b"3"),
    "recipe not text": damage_recipe(b"\xff\xfe\x80"),
    "recipe nested": damage_recipe(b"[" * 200_000),
    "recipe without one": damage_recipe(b"{}"),
    "recipe cut": damage_recipe(b'{"recipe": {'),
    "recipe null": damage_recipe(b'{"recipe": null}'),
    "recipe of another class": edit_recipe("task.kind", "os.system"),
    "recipe of a list as kind": edit_recipe("task.kind", ["a"]),
    "checkpoint of pickles": pickled_checkpoint,
}


@pytest.mark.parametrize("name", RESUMED)
def test_resume_in_a_tampered_folder_is_refused(place, tmp_path, name):
    run = tmp_path / "toy_phase1"
    shutil.copytree(place / "toy_phase1", run)
    (run / "finished").unlink()
    RESUMED[name](run)
    with pytest.raises(ValueError) as error:
        train_recipe(toy_phase1(), run, data=place / "photos", device="cpu")
    assert "\n" not in str(error.value) and len(str(error.value)) < 2000
    assert str(run) in str(error.value)
    assert not (run / "marker").exists()


def test_there_are_enough():
    assert len(ATTACKS) + len(ARRAYS) + len(RESUMED) > 40
