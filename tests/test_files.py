"""Files of run folders: whole or not at all; a folder of another kind is called what it is."""

import json
from pathlib import Path

import pytest

from semvq.files import read_config, replace_atomically, write_atomically


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "old")

    def broken(temporary):
        temporary.write_text("half")
        assert temporary.parent == tmp_path and path.read_text() == "old"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        replace_atomically(path, broken)
    assert path.read_text() == "old"
    write_atomically(path, "new – ö")
    assert path.read_text(encoding="utf-8") == "new – ö"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two tokenizer runs, an AR run, a NAR run, and folders that are no runs."""
    monkeypatch.chdir(tmp_path)
    records = {
        "one": {"format": "semvq tokenizer 1"},
        "two": {"format": "semvq tokenizer 1"},
        "ar": {"generator": {"kind": "ARConfig"}},
        "nar": {"generator": {"kind": "NARConfig"}},
        "mine": {"generator": {"kind": "MyConfig"}},
        "odd": [1],
    }
    for name, record in records.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text(json.dumps(record))
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "config.json").write_bytes(b"\xff{")
    (tmp_path / "runs" / "young").mkdir()
    (tmp_path / "runs" / "young" / "recipe.json").touch()
    return tmp_path


TOKENIZERS = "give one of: runs/one, runs/two"
GENERATORS = "give one of: runs/ar, runs/mine, runs/nar"


@pytest.mark.parametrize(
    ("folder", "family", "message"),
    [
        ("runs/ar", "tokenizer", f"expected W, found an AR run; {TOKENIZERS}"),
        ("runs/nar", "tokenizer", f"expected W, found a NAR run; {TOKENIZERS}"),
        ("runs/mine", "tokenizer", f"expected W, found a generator's run; {TOKENIZERS}"),
        ("runs/one", "generator", f"expected W, found a tokenizer run; {GENERATORS}"),
        ("runs/onne", "tokenizer", f"the folder of W, found no such folder; {TOKENIZERS}"),
        ("runs", "generator", f"the folder of W, found a folder without config.json; {GENERATORS}"),
        ("runs/young", "generator", f"found a run that has saved no model yet; {GENERATORS}"),
        ("runs/one/config.json", "tokenizer", "found a file; give a folder that"),
        ("far/off", "tokenizer", "give a folder that `semvq train` made, with config.json and"),
        ("runs/broken", "tokenizer", "expected JSON"),
    ],
)
def test_another_folder_is_called_what_it_is(place, folder, family, message):
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        read_config(Path(folder), family, "W")
    assert message in str(refused.value) and str(refused.value).startswith(folder)


def test_many_runs_are_counted_and_not_listed(tmp_path):
    for index in range(9):
        (tmp_path / f"{index}").mkdir()
        (tmp_path / f"{index}" / "config.json").write_text('{"format": "semvq tokenizer 1"}')
    with pytest.raises(FileNotFoundError, match="/5 and 3 more"):
        read_config(tmp_path, "tokenizer", "a tokenizer run")
