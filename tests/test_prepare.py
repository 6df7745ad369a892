"""`semvq prepare`: every source trains, and a run that was stopped ends as if it had not been."""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tarfile
import time
from hashlib import sha256
from pathlib import Path

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bench import preparing

from semvq.cli import main, parser
from semvq.data.images import ImageSet
from semvq.data.pixels import crop_resize
from semvq.recipes import find_recipe
from semvq.sources.items import START, class_folders, read_class_names, stem
from semvq.sources.opening import open_sources
from semvq.sources.parquet import Columns, parquet_files
from semvq.sources.tars import expand
from semvq.training import lock as training_lock
from semvq.training.journal import read_log
from semvq.training.runs import train_recipe
from tests.forks import start
from tests.shrinking import shrink
from tests.source_cases import (
    SOURCES,
    database,
    encoded,
    parquet,
    pixels,
    table,
    tar_bytes,
    web_shards,
)
from tests.toy import SIDE, photos


def prepare(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["prepare", *map(str, arguments)])
    assert stop.value.code == 0


def small(source: object, out: Path, *more: object) -> None:
    prepare(source, out, "--size", SIDE, "--shard", 10, "--workers", 0, *more)


def refused(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["prepare", *map(str, arguments)])
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and "Traceback" not in "".join(said)
    return said[-1]


def manifest(out: Path) -> dict:
    return json.loads((out / "manifest.json").read_text())


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.*")) if path.is_file()}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_trains_in_the_one_order(name, tmp_path):
    make, classes = SOURCES[name]
    out = tmp_path / "out"
    small(make(tmp_path), out)
    images = ImageSet.open(out)
    assert images.classes == classes and len(images) == 24
    if classes:
        assert np.bincount(images.labels).tolist() == [8, 8, 8]
    wanted = [crop_resize(x, SIDE) for x in pixels(tmp_path)]
    for i in range(24):  # photos of every source are made in one order, that of their names
        assert np.array_equal(images.load(i), wanted[i]), images.name(i)
    recipe = shrink(find_recipe("fruit_autoencoder"))
    assert train_recipe(recipe, tmp_path / "run", data=out) is None
    assert [x["images_seen"] for x in read_log(tmp_path / "run") if "psnr" in x] == [4, 8]


def test_shards_and_manifest_do_not_depend_on_the_processes(tmp_path):
    source = photos(tmp_path / "photos")
    small(source, tmp_path / "one")
    prepare(source, tmp_path / "two", "--size", SIDE, "--shard", 10, "--workers", 2)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    facts = manifest(tmp_path / "one")["splits"]["train"]
    assert facts["images"] == 24 and [s["images"] for s in facts["shards"]] == [10, 10, 4]
    for shard in facts["shards"]:
        data = (tmp_path / "one" / shard["name"]).read_bytes()
        assert (len(data), sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])


def slowly(arguments: list[str]) -> None:
    """`semvq prepare`, 10 ms an image."""
    quick = tarfile.TarFile.addfile

    def slow(*given):
        time.sleep(0.01)
        return quick(*given)

    tarfile.TarFile.addfile = slow
    main(arguments)


def children(of: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == of and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def gone(pids: list[int]) -> bool:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_goes_on_to_equal_bytes(tmp_path, workers):
    source = photos(tmp_path / "photos", per_class=60)
    (source / "red" / "7.png").write_bytes(b"no image")
    arguments = ["--size", SIDE, "--shard", 15, "--workers", workers]
    prepare(source, tmp_path / "whole", *arguments)
    out = tmp_path / "killed"
    process = start(list(map(str, ["prepare", source, out, *arguments])), slowly)
    third = out / ".prepare" / "train-00002.json"
    until = time.monotonic() + 120
    while not third.exists():
        assert process.is_alive() and time.monotonic() < until
        time.sleep(0.01)
    pool = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert gone(pool), "processes outlive the one that started them"
    kept = {path: path.stat().st_mtime_ns for path in out.glob("train-0000[0-2].tar")}
    assert len(kept) == 3 and not (out / "manifest.json").exists()
    assert len(list(out.glob("*.tar"))) < 12
    prepare(source, out, *arguments)
    assert files(out) == files(tmp_path / "whole") and len(list(out.glob("*.tar"))) == 12
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "made again"
    assert not list(out.glob(".train*")) and not (out / "lock").exists()


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_goes_on_from_any_place(name, tmp_path):
    source = next(iter(open_sources(SOURCES[name][0](tmp_path), Columns()).values()))
    whole = [(item.name, np.asarray(item.read()).tobytes(), item.after) for item in source.items()]
    assert len(whole) == 24 and len({x[0] for x in whole}) == 24
    for i in (0, 1, 11, 12, 23, 24):
        rest = source.items(whole[i - 1][2] if i else START)
        assert [(x.name, np.asarray(x.read()).tobytes(), x.after) for x in rest] == whole[i:]


def test_a_damaged_shard_is_made_again(tmp_path):
    small(photos(tmp_path / "photos"), tmp_path / "out")
    before = files(tmp_path / "out")
    shard = tmp_path / "out" / "train-00001.tar"
    shard.write_bytes(shard.read_bytes()[:-600] + b"x" * 600)
    (tmp_path / "out" / "train-00002.tar").unlink()
    small(tmp_path / "photos", tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_only_temporary_files_of_our_shards_are_removed(tmp_path, capsys):
    source, out = photos(tmp_path / "photos"), tmp_path / "out"
    ours = [".train-00001.tar.77", ".manifest.json.77", ".prepare/.train-00001.json.77"]
    theirs = [".x.123", ".notes.2024", ".train.7", ".other-00001.tar.7", ".prepare/.x.123"]
    (out / ".prepare").mkdir(parents=True)
    for name in [*ours, *theirs]:
        (out / name).write_text("words")
    small(source, out)
    assert [x for x in [*ours, *theirs] if (out / x).exists()] == theirs
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "manifest.json").write_text("{}")
    line = refused(capsys, source, tmp_path / "site", "--size", 16, "--workers", 0)
    assert "expected a folder without images" in line and "manifest.json" in line


def test_a_broken_image_is_left_out_and_named(tmp_path, capsys):
    source = photos(tmp_path / "photos", per_class=8)
    (source / "red" / "3.png").write_bytes(b"no image")
    (source / "red" / "9.png").symlink_to("nothing")
    line = refused(capsys, source, tmp_path / "out", "--size", SIDE, "--workers", 0)
    assert "2 of 25 images cannot be read, more than 1%" in line and "red/3.png" in line
    (source / "red" / "9.png").unlink()
    small(source, tmp_path / "other")
    assert "left out 1 that cannot be read" in capsys.readouterr().err
    facts = manifest(tmp_path / "other")["splits"]["train"]
    assert facts["images"] == 23 and "red/3.png: expected JPEG" in facts["bad"][0]
    assert len(ImageSet.open(tmp_path / "other")) == 23


def test_names_do_not_reach_the_terminal_as_they_are(tmp_path, capsys):
    images = [(f"{i}\x1b[2J\nx\udc80.png", data) for i, (_, data) in enumerate(encoded(tmp_path))]
    images[3] = images[3][0], b"no image"
    (tmp_path / "odd.tar").write_bytes(tar_bytes(images))
    small(tmp_path / "odd.tar", tmp_path / "out", "--split", f"val={tmp_path / 'odd.tar'}")
    said = capsys.readouterr()
    assert "left out 1" in said.err and "are in an earlier split too: train: 0" in said.err
    assert "\\x1b[2J x\\udc80" in said.err and "\x1b" not in said.err + said.out
    assert len(said.err.splitlines()) == 3 and len(said.out.splitlines()) == 3
    images[4] = images[4][0], b"no image"
    (tmp_path / "odd.tar").write_bytes(tar_bytes(images))
    line = refused(capsys, tmp_path / "odd.tar", tmp_path / "b", "--size", 16, "--workers", 0)
    assert "2 of 24 images cannot be read" in line and "\x1b" not in line


def test_a_disk_that_fails_is_no_bad_image(tmp_path, capsys, monkeypatch):
    source, read = photos(tmp_path / "photos"), Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "5.png":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", failing)
        line = refused(capsys, source, tmp_path / "out", "--size", SIDE, "--shard", 10)
    assert "5.png: Input/output error; see to it and run the same command again" in line
    small(source, tmp_path / "out")
    assert manifest(tmp_path / "out")["splits"]["train"]["images"] == 24


def test_records_of_any_size_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("semvq.files.MAX_CONFIG", 300)
    source = photos(tmp_path / "photos")
    for _ in range(2):
        small(source, tmp_path / "out")
        assert manifest(tmp_path / "out")["splits"]["train"]["images"] == 24


def test_a_last_shard_of_bad_images_alone_is_no_tar(tmp_path):
    source = photos(tmp_path / "photos")
    (source / "red" / "9.png").write_bytes(b"")
    prepare(source, tmp_path / "out", "--size", SIDE, "--shard", 8, "--workers", 0)
    facts = manifest(tmp_path / "out")["splits"]["train"]
    assert len(facts["shards"]) == 3 and len(facts["bad"]) == 1
    before = files(tmp_path / "out")
    prepare(source, tmp_path / "out", "--size", SIDE, "--shard", 8, "--workers", 0)
    assert files(tmp_path / "out") == before


def test_exact_duplicates_are_reported_within_and_across_splits(tmp_path, capsys):
    train, val = photos(tmp_path / "train"), photos(tmp_path / "held", per_class=2, seed=1)
    shutil.copy(train / "red" / "1.png", train / "red" / "again.png")
    shutil.copy(train / "blue" / "2.png", val / "blue" / "stray.png")
    small(train, tmp_path / "out", "--split", f"val={val}")
    found = manifest(tmp_path / "out")["duplicates"]
    assert found["within"] == {"train": 1, "val": 0} and found["across"] == {"val": 1}
    assert ["train: blue/2", "val: blue/stray"] in found["groups"]
    assert ["train: red/1", "train: red/again"] in found["groups"] and len(found["groups"]) == 2
    said = capsys.readouterr()
    assert "val: 1 images are in an earlier split too: train: blue/2, val: blue/stray" in said.err
    assert f"--data '{tmp_path}/out/train-*.tar' --val '{tmp_path}/out/val-*.tar'" in said.out
    held_out = ImageSet.open(tmp_path / "out" / "val-*.tar")
    assert len(held_out) == 7 and len(ImageSet.open(tmp_path / "out" / "train-*.tar")) == 25


def test_a_data_set_with_splits_gives_all_of_them(tmp_path, capsys):
    source = Path(parquet(tmp_path))
    name = "validation-00000-of-00001.parquet"
    shutil.copy(source / "data" / "train-00001-of-00002.parquet", source / "data" / name)
    small(source, tmp_path / "out")
    facts = manifest(tmp_path / "out")
    assert {k: v["images"] for k, v in facts["splits"].items()} == {"train": 24, "validation": 12}
    assert facts["duplicates"]["across"] == {"validation": 12}
    assert "validation-*.tar" in capsys.readouterr().out
    small(
        source / "data" / "validation-*.parquet", tmp_path / "alone", "--split", f"train={source}"
    )
    assert list(manifest(tmp_path / "alone")["splits"]) == ["validation", "train"]
    shutil.copytree(source, tmp_path / "test" / "set")
    for path in (tmp_path / "test" / "set" / "data").iterdir():
        path.rename(path.with_name(f"{len(path.name)}.parquet"))
    for given in ("test/set", "test/set/data", "test/set/data/*.parquet"):
        assert list(parquet_files(str(tmp_path / given))) == ["train"]
    line = refused(capsys, source, tmp_path / "b", "--size", 16, "--split", f"val={source}")
    assert "expected one split or one called 'val', found train, validation" in line


def test_folders_of_splits_are_splits(tmp_path):
    photos(tmp_path / "set" / "val", per_class=2, seed=1)
    photos(tmp_path / "set" / "train")
    small(tmp_path / "set", tmp_path / "out")
    facts = manifest(tmp_path / "out")["splits"]
    assert {k: v["images"] for k, v in facts.items()} == {"train": 24, "val": 6}
    assert facts["val"]["classes"] == ["blue", "green", "red"]


def test_a_list_holds_images_out_as_ffhq_has_it(tmp_path, capsys):
    source = tmp_path / "ffhq"
    source.mkdir()
    for i, (_, data) in enumerate(encoded(tmp_path)):
        (source / f"{i:05d}.png").write_bytes(data)
    listed = tmp_path / "ffhqvalidation.txt"
    listed.write_text("00003.png\n00021.png\n")
    small(source, tmp_path / "out", "--val-list", listed)
    val = ImageSet.open(tmp_path / "out" / "val-*.tar")
    assert [val.name(i) for i in range(2)] == ["00003.png", "00021.png"]
    assert len(ImageSet.open(tmp_path / "out" / "train-*.tar")) == 22
    listed.write_text("00003.png\n99999.png\n")
    line = refused(
        capsys, source, tmp_path / "b", "--size", 16, "--workers", 0, "--val-list", listed
    )
    assert "expected 2 images, found 1" in line


def test_class_names_follow_the_class(tmp_path, capsys):
    source = photos(tmp_path / "photos")
    names = tmp_path / "LOC_synset_mapping.txt"
    names.write_text("blue sky, heaven\ngreen grass\nred rose, briar\n")
    small(source, tmp_path / "out", "--class-names", names)
    assert ImageSet.open(tmp_path / "out").classes == ("blue sky", "green grass", "red rose")
    names.write_text("blue sky\n")
    assert read_class_names(names) == {"blue": "sky"}
    line = refused(
        capsys, source, tmp_path / "b", "--size", 16, "--workers", 0, "--class-names", names
    )
    assert "expected a class that --class-names has, found 'green'" in line


def test_kept_files_are_stored_byte_for_byte(tmp_path):
    source = photos(tmp_path / "photos")  # 24 x 20
    prepare(source, tmp_path / "kept", "--size", 20, "--keep", "--workers", 0)
    prepare(source, tmp_path / "cut", "--size", 19, "--keep", "--workers", 0, "--quality", 90)
    kept, cut = ImageSet.open(tmp_path / "kept"), ImageSet.open(tmp_path / "cut")
    original = ImageSet.open(source)
    assert kept.fingerprint == original.fingerprint
    assert kept.load(5).shape == (20, 24, 3) and cut.load(5).shape == (19, 19, 3)
    assert np.array_equal(kept.load(5), original.load(5)) and cut.name(5).endswith(".jpg")


def test_metadata_beside_images_is_no_source(tmp_path):
    source = photos(tmp_path / "photos")
    pq.write_table(pa.table({"file_name": ["red/0.png"]}), source / "metadata.parquet")
    small(source, tmp_path / "out")
    assert len(ImageSet.open(tmp_path / "out")) == 24


def test_names_that_differ_in_their_extension_stay_apart(tmp_path):
    source = photos(tmp_path / "photos")
    shutil.copy(source / "red" / "1.png", source / "red" / "1.jpg")
    small(source, tmp_path / "out")
    images = ImageSet.open(tmp_path / "out")
    names = [images.name(i) for i in range(len(images))]
    assert len(names) == 25 and {"red/1_jpg.png", "red/1_png.png", "red/2.png"} <= set(names)
    for name in ("a.b.png", "a_b.png", "1_png.png"):
        shutil.copy(source / "red" / "1.png", source / "red" / name)
    small(source, tmp_path / "more")
    assert len(ImageSet.open(tmp_path / "more")) == 28


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["cat", "dog"], ["cat", "dog"]),
        (["dog", "cat"], ["0 dog", "1 cat"]),
        (["crane", "crane"], ["0 crane", "1 crane"]),
        ([str(i) for i in range(11)], [f"{i:05d}" for i in range(11)]),
        (["a/b", ".c"], ["0 a_b", "1 _c"]),
        (["3", "1", "2"], ["0 3", "1 1", "2 2"]),
        (["2", "1", "01"], ["0 2", "1 1", "2 01"]),
        (["²", "1"], ["0 ²", "1 1"]),
    ],
)
def test_folders_keep_the_numbers_of_classes(names, folders):
    found = class_folders(names)
    assert found == sorted(found) and len(found) == len(names)
    assert found == folders


def test_numbers_as_text_keep_their_order(tmp_path):
    labels = [["10", "9", "100"][i % 3] for i in range(24)]
    np.savez(tmp_path / "text.npz", pixels(tmp_path), np.array(labels))
    small(tmp_path / "text.npz", tmp_path / "out")
    assert ImageSet.open(tmp_path / "out").classes == ("00009", "00010", "00100")


@pytest.mark.parametrize("label", [b".", b"..", b"a/b", b"../x", b"a[2J", b"123456"])
def test_a_class_that_makes_no_folder_is_refused(tmp_path, capsys, label):
    members = [("a/7.png", encoded(tmp_path)[0][1]), ("a/7.cls", label)]
    (tmp_path / "odd.tar").write_bytes(tar_bytes(members))
    line = refused(capsys, tmp_path / "odd.tar", tmp_path / "out", "--size", 16, "--workers", 0)
    assert "odd.tar" in line and "a/7." in line and "expected" in line and "class" in line
    assert "" not in line and not list((tmp_path / "out").glob("*.tar"))


def test_patterns_and_keys():
    assert expand("s3://b/t-{08..11}-{a,b}.tar")[:3] == [
        "s3://b/t-08-a.tar", "s3://b/t-08-b.tar", "s3://b/t-09-a.tar",
    ]  # fmt: skip
    assert stem("cat/a.b.JPEG") == "cat/a_b"
    for pattern in ("x-{9..1}.tar", "x-{0..999999}.tar", "x-{000..999}{000..999}.tar"):
        with pytest.raises(ValueError, match="x-"):
            expand(pattern)


def test_the_earlier_call_must_have_been_the_same(tmp_path, capsys):
    source, out = photos(tmp_path / "photos"), tmp_path / "out"
    small(source, out)
    assert "expected size 16 for 'train'" in refused(capsys, source, out, "--size", 8)
    shutil.copy(source / "red" / "1.png", source / "red" / "new.png")
    line = refused(capsys, source, out, "--size", 16, "--shard", 10)
    assert re.search(rf"expected source {source} \([0-9a-f]{{8}}\) for 'train'", line)
    assert re.search(rf"found {source} \([0-9a-f]{{8}}\); give another OUT", line)
    shutil.rmtree(out / ".prepare")
    assert "expected a folder without images" in refused(capsys, source, out, "--size", 16)


def test_shards_never_lie_among_the_images_of_a_source(tmp_path, capsys):
    source, val = photos(tmp_path / "photos"), photos(tmp_path / "val", per_class=2)
    (tmp_path / "some.tar").write_bytes(tar_bytes(encoded(tmp_path)))
    before = sorted(tmp_path.rglob("*"))
    for given, out, words in (
        ([source], source, "found the source itself; give a new folder elsewhere"),
        ([source], source / "red" / "new", "found one inside it"),
        ([source], tmp_path, "found one above it"),
        ([source / "*" / "x-{0..1}.tar"], source, "found one above it"),
        ([tmp_path / "some.tar"], tmp_path, "found one above it"),
        ([source, "--split", f"val={val}"], val, f"apart from the source {val}"),
    ):
        assert words in refused(capsys, *given, out, "--size", SIDE, "--workers", 0)
    (tmp_path / "link").symlink_to(source)
    assert "itself" in refused(capsys, source, tmp_path / "link", "--size", SIDE)
    (tmp_path / "link").unlink()
    line = refused(capsys, source, val, "--size", SIDE, "--workers", 0)
    assert "expected a folder without images" in line and "found blue; give another OUT" in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("exists", [False, True])
def test_a_source_that_gives_nothing_claims_no_folder(tmp_path, capsys, exists):
    out, source = tmp_path / "out", photos(tmp_path / "photos")
    if exists:
        out.mkdir()
        (out / training_lock.NAME).write_text("")  # as a killed job leaves it
    (tmp_path / "x.tar").write_text("no archive")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_text("no image")  # read, recorded, and all there is
    for wrong in (tmp_path / "x.tar", tmp_path / "bad"):
        refused(capsys, wrong, out, "--size", SIDE, "--workers", 0)
        assert not out.exists() or not list(out.iterdir()), wrong
    small(source, out)
    val = ["--split", f"val={tmp_path / 'x.tar'}"]
    refused(capsys, source, out, "--size", SIDE, "--shard", 10, "--workers", 0, *val)
    small(source, out, "--split", f"val={photos(tmp_path / 'val', per_class=2, seed=1)}")
    assert list(manifest(out)["splits"]) == ["train", "val"]


def test_what_a_killed_run_began_without_a_shard_is_forgotten(tmp_path):
    (tmp_path / "out" / ".prepare").mkdir(parents=True)
    (tmp_path / "out" / ".prepare" / "train.json").write_text('{"size": 999, "source": "x"}')
    small(photos(tmp_path / "photos"), tmp_path / "out")
    assert manifest(tmp_path / "out")["splits"]["train"]["images"] == 24


def test_a_split_that_was_there_is_given_again(tmp_path, capsys):
    source, out = photos(tmp_path / "photos"), tmp_path / "out"
    val = photos(tmp_path / "val", per_class=2, seed=1)
    small(source, out, "--split", f"val={val}")
    before = files(out)
    line = refused(capsys, source, out, "--size", SIDE, "--shard", 10, "--workers", 0)
    assert "expected the splits train and val, as when it was begun, found train alone" in line
    assert f"give val again (it was made of {val}), or another OUT" in line
    assert files(out) == before
    small(source, out, "--split", f"val={val}")
    assert files(out) == before


def broken(tmp_path: Path, kind: str) -> str:
    if kind == "a tar cut short":
        (tmp_path / "a.tar").write_bytes(tar_bytes(encoded(tmp_path))[:-12_000])
        return str(tmp_path / "a.tar")
    if kind == "no database":
        (tmp_path / "db").mkdir()
        (tmp_path / "db" / "data.mdb").write_bytes(b"x" * 9000)
        return str(tmp_path / "db")
    if kind == "a database cut short":
        path = Path(database(tmp_path))
        os.truncate(path / "data.mdb", (path / "data.mdb").stat().st_size - 4096)
        return str(path)
    if kind == "a database's head":
        path = Path(database(tmp_path))
        os.truncate(path / "data.mdb", 8192)
        return str(path)
    if kind == "no parquet":
        (tmp_path / "a.parquet").write_bytes(b"x" * 9000)
        return str(tmp_path / "a.parquet")
    if kind == "no column":
        pq.write_table(pa.table({"text": ["a"]}), tmp_path / "b.parquet")
        return str(tmp_path / "b.parquet")
    if kind == "two columns":
        pq.write_table(pa.table({"left": [b"a"], "right": [b"b"]}), tmp_path / "c.parquet")
        return str(tmp_path / "c.parquet")
    if kind == "float arrays":
        np.savez(tmp_path / "a.npz", np.zeros((2, 16, 16, 3)))
        return str(tmp_path / "a.npz")
    if kind == "cut arrays":
        np.savez(tmp_path / "b.npz", np.zeros((9, 16, 16, 3), np.uint8))
        data = (tmp_path / "b.npz").read_bytes()
        (tmp_path / "b.npz").write_bytes(data[:-3000])
        return str(tmp_path / "b.npz")
    if kind == "parquet and images":
        parquet(tmp_path)
        shutil.copytree(tmp_path / "photos" / "red", tmp_path / "hub" / "red")
        return str(tmp_path / "hub")
    if kind == "two databases":
        (tmp_path / "two").mkdir()
        shutil.move(database(tmp_path), tmp_path / "two")
        return str(tmp_path / "two")
    return kind


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nowhere", "nowhere: expected a folder of images"),
        ("mnist/mnist", "give hf://datasets/mnist/mnist"),
        ("a tar cut short", "a.tar: expected a whole, uncompressed tar file"),
        ("no database", "db: expected an LMDB database of images"),
        ("a database cut short", "it was cut short; get it again"),
        ("a database's head", "found 8192: it was cut short; get it again"),
        ("two databases", "expected one database"),
        ("parquet and images", "expected parquet files or images, found both ("),
        ("no parquet", "a.parquet: expected parquet files of images, found"),
        ("no column", "expected a column of encoded images, found text"),
        ("two columns", "found left and right; choose with --image-column"),
        ("float arrays", "expected images uint8 (N, H, W, 3), found float64"),
        ("cut arrays", "b.npz: expected a whole .npz file"),
        ("memory://nothing/a-{0..1}.tar", "memory://nothing/a-0.tar"),
        ("memory://nothing/here", "expected parquet files, or tar files (.tar), found none"),
        ("nothing://a/b.tar", "nothing://a/b.tar: expected a file that can be fetched"),
        ("x-{0..1}.tar", "x-0.tar: expected a tar file, found none there"),
    ],
)
def test_a_wrong_source_ends_in_one_line(tmp_path, capsys, monkeypatch, kind, message):
    monkeypatch.chdir(tmp_path)
    source = broken(tmp_path, kind)
    assert message in refused(capsys, source, tmp_path / "out", "--size", 16, "--workers", 0)


@pytest.mark.parametrize(
    ("module", "make"),
    [("pyarrow.parquet", parquet), ("lmdb", database), ("fsspec", None), ("huggingface_hub", None)],
)
def test_a_missing_package_is_named_with_how_to_install_it(
    tmp_path, capsys, monkeypatch, module, make
):
    urls = {"fsspec": "https://a.b/c-{0..1}.tar", "huggingface_hub": "hf://datasets/a/b"}
    source = make(tmp_path) if make else urls[module]
    monkeypatch.setitem(sys.modules, module, None)
    line = refused(capsys, source, tmp_path / "out", "--size", 16, "--workers", 0)
    assert f"expected the package {module.partition('.')[0]} to read it" in line
    assert "pip install 'semvq[sources]'" in line


def test_options_that_mean_nothing_are_refused(tmp_path, capsys):
    source, out = photos(tmp_path / "photos"), tmp_path / "out"
    for arguments, message in (
        (["--size", 4], "--size: expected 8 to 4096"),
        (["--size", 16, "--quality", 0], "--quality"),
        (["--size", 16, "--shard", 0], "--shard"),
        (["--size", 16, "--workers", -1], "--workers"),
        (["--size", 16, "--split", "val"], "--split: expected NAME=SOURCE"),
        (["--size", 16, "--split", f"train={source}"], "--split: expected a split beside train"),
        (["--size", 16, "--split", f"heldout={source}"], "train, val or test, found 'heldout'"),
    ):
        assert message in refused(capsys, source, out, *arguments)


def test_a_database_gives_its_images_by_key_and_names_a_broken_one(tmp_path):
    path = Path(database(tmp_path))
    with lmdb.open(str(path), map_size=2**24) as made, made.begin(write=True) as transaction:
        transaction.put(b"\xff\x00/", b"no image")
    small(path, tmp_path / "out")
    facts = manifest(tmp_path / "out")["splits"]["train"]
    assert (
        facts["images"] == 24 and "church_outdoor_train_lmdb: ff002f: expected" in facts["bad"][0]
    )


def test_images_and_labels_that_are_not_there(tmp_path, capsys):
    images = [{"bytes": data, "path": None} for _, data in encoded(tmp_path)]
    path = tmp_path / "some.parquet"
    pq.write_table(pa.table({"image": images, "label": [-1] * 24}), path)
    small(path, tmp_path / "plain")
    assert ImageSet.open(tmp_path / "plain").classes == ()
    pq.write_table(pa.table({"image": images, "label": [-1] + [3] * 23}), path)
    line = refused(capsys, path, tmp_path / "mixed", "--size", 16, "--workers", 0)
    assert "expected every image in a class or none" in line
    images[5] = {"bytes": None, "path": "elsewhere/5.png"}
    pq.write_table(pa.table({"image": images, "label": ["x"] * 24}), path)
    small(path, tmp_path / "one")
    facts = manifest(tmp_path / "one")["splits"]["train"]
    assert facts["classes"] == ["x"] and "found only the path elsewhere/5.png" in facts["bad"][0]


def noted(found: pa.Table, features: dict) -> pa.Table:
    return found.replace_schema_metadata({"huggingface": json.dumps({"info": features})})


def test_a_column_of_lists_beside_the_images(tmp_path, capsys):
    images = [{"bytes": data, "path": None} for _, data in encoded(tmp_path)]
    features = {"image": {"_type": "Image"}, "captions": [{"_type": "Value", "dtype": "string"}]}
    found = pa.table({"image": images, "captions": [["a", "b"]] * 24})
    path = tmp_path / "some.parquet"
    pq.write_table(noted(found, {"features": features}), path)
    small(path, tmp_path / "out")
    assert len(ImageSet.open(tmp_path / "out")) == 24
    arguments = ["--size", 16, "--workers", 0, "--image-column", "captions"]
    line = refused(capsys, path, tmp_path / "b", *arguments)
    assert "some.parquet: expected encoded images in the column 'captions', found list<" in line
    pq.write_table(noted(found, ["odd"]), path)
    small(path, tmp_path / "plain")


def test_files_of_different_classes_are_refused(tmp_path, capsys):
    for config, names in (("large", ["ant", "bee", "cow"]), ("small", ["cat", "dog", "eel"])):
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        (tmp_path / "hub" / config).mkdir(parents=True)
        path = tmp_path / "hub" / config / "train-00000-of-00001.parquet"
        pq.write_table(noted(table(tmp_path), {"features": features}), path)
    line = refused(capsys, tmp_path / "hub", tmp_path / "out", "--size", 16, "--workers", 0)
    assert "small/train-00000-of-00001.parquet: expected the classes of" in line
    assert "(ant, bee, cow), found cat, dog, eel; give the files of one configuration" in line
    small(tmp_path / "hub" / "small" / "*.parquet", tmp_path / "small")
    assert ImageSet.open(tmp_path / "small").classes == ("cat", "dog", "eel")


def test_the_same_name_in_two_shards_is_refused(tmp_path, capsys):
    web_shards(tmp_path)
    shutil.copy(tmp_path / "web-000.tar", tmp_path / "web-002.tar")
    pattern = tmp_path / "web-{000..002}.tar"
    line = refused(capsys, pattern, tmp_path / "out", "--size", 16, "--workers", 0)
    assert "expected images of different names, found two '00000/000000'" in line
    assert not (tmp_path / "out" / "manifest.json").exists()
    for name in ("web-003.tar", "web-004.tar"):
        shutil.copy(tmp_path / "web-000.tar", tmp_path / name)
    pattern = tmp_path / "web-{000..004}.tar"
    arguments = ["--size", 16, "--workers", 0, "--shard", 12]
    for _ in range(2):  # as early as the shard that has it
        assert "found two '" in refused(capsys, pattern, tmp_path / "early", *arguments)
        assert len(list((tmp_path / "early").glob("*.tar"))) == 3


PAGE = (Path(__file__).parent.parent / "docs" / "data.md").read_text()


def test_the_pages_commands_are_commands():
    page = PAGE.replace("\\\n", "")  # continued lines
    lines = [x.split("#")[0] for b in page.split("```console\n")[1:] for x in b.splitlines()]
    commands = [shlex.split(x)[1:] for x in lines if x.startswith("semvq ")]
    assert len(commands) == 5
    for command in commands:
        parser().parse_args(command)


def test_the_bench_has_every_kind_of_source(tmp_path):
    for kind in preparing.KINDS:
        (tmp_path / kind).mkdir()
        found = preparing.measure(tmp_path / kind, kind, 1000, workers=0)
        assert found["images"] == 1000 and found["images_per_second"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "npz"])
def test_memory_is_flat(tmp_path, kind):
    """Here for 10,000 images; `bench/preparing.py` does it for more."""
    found = preparing.measure(tmp_path, kind, 10_000, workers=1)
    assert found["mb_at_most_later"] - found["mb_at_a_tenth"] < 8, found
    assert found["mb_at_the_end"] - found["mb_at_a_tenth"] < 16, found
    assert found["workers_mb"][1] - found["workers_mb"][0] < 8, found
