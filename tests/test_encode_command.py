"""`semvq encode`: what it says of unreadable files, and one job per cache."""

from pathlib import Path

import pytest

from semvq.cli import main
from semvq.data.tokens import TokenCache
from semvq.training.lock import only_job
from semvq.training.runs import train_recipe
from tests.test_lock import end, holder
from tests.toy import photos, toy_phase1


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("encode")
    data = photos(place / "photos")
    assert train_recipe(toy_phase1(duration="1 step"), place / "toy_phase1", data=data) is None
    return place / "toy_phase1"


def encode(run: Path, data: Path, out: Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["encode", str(run), "--data", str(data), "--out", str(out)])
    return stop.value.code


@pytest.mark.parametrize(("num_bad", "more"), [(1, ""), (5, "; and 2 more")])
def test_what_was_left_out_is_said_at_the_end(run, tmp_path, capsys, num_bad, more):
    data = photos(tmp_path / "photos", per_class=300)
    bad = [data / "red" / f"{i}.png" for i in range(num_bad)]
    for path in bad:
        path.write_bytes(b"")
    assert encode(run, data, tmp_path / "cache") == 0
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith(f"left out {num_bad} that cannot be read: {data / 'red'}"), captured.err
    assert last.endswith(f": the file is empty{more}") and last.count(".png") == min(3, num_bad)
    assert "token cache" in captured.out
    assert (
        sum(len(TokenCache.open(tmp_path / "cache" / p).bad) for p in ("train", "val")) == num_bad
    )


def test_nothing_is_said_where_all_were_read(run, tmp_path, capsys):
    assert encode(run, photos(tmp_path / "photos"), tmp_path / "cache") == 0
    assert "left out" not in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "photos"], "no lock is left"


def test_a_second_job_for_the_same_cache_refuses_and_leaves_the_first_ones_parts(
    run, tmp_path, capsys
):
    data = photos(tmp_path / "photos")
    parts = tmp_path / ".cache-parts" / "train"
    parts.mkdir(parents=True)
    first = holder(tmp_path / ".cache-lock")
    try:
        assert encode(run, data, tmp_path / "cache") == 2
        assert f"found pid {first.pid}" in capsys.readouterr().err
        assert parts.exists() and not (tmp_path / "cache").exists()
        assert encode(run, data, tmp_path / "another") == 0
    finally:
        end(first)
    assert encode(run, data, tmp_path / "cache") == 0, "a killed job locks nobody out"
    with only_job(tmp_path / ".cache-lock"):
        pass
