"""Models for a hub and from it; no network: huggingface_hub's functions are replaced."""

import json
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import huggingface_hub
import pytest
import torch
from PIL import Image

import semvq
from semvq.cli import main
from semvq.interop import hub
from semvq.interop.hub_folder import write_hub_folder
from semvq.tokenizer.files import save_tokenizer
from semvq.tokenizer.quantize import VectorQuantizer, VectorQuantizerConfig
from semvq.training.runs import train_recipe
from tests.absent import hide
from tests.toy import photos, toy_generator, toy_phase1

NAMES = ["README.md", "config.json", "manifest.json", "model.safetensors", "picture.png",
         "recipe.json"]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    data = photos(folder / "photos")
    for recipe in (toy_phase1(), toy_generator("nar")):
        assert train_recipe(recipe, folder / recipe.name, data=data) is None
    record = {
        "protocol": "reconstruction", "run": str(folder / "toy_phase1"),
        "figures": {"rfid": 12.3456789, "psnr": 20.5},
        "facts": {
            "model": digest(folder / "toy_phase1" / "model.safetensors"), "network": "inception",
            "images": {"images": str(folder / "photos"), "count": 24, "fingerprint": "ab|cd"},
        },
        "warnings": [
            "few images", f"could not be read and was left out: {folder}/a.png",
        ],
    }  # fmt: skip
    (folder / "figures.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def published(runs, tmp_path) -> Path:
    write_hub_folder(runs / "toy_phase1", tmp_path / "published")
    return tmp_path / "published"


@pytest.fixture
def online(monkeypatch):
    """A hub with the folders of `online.folders`; what was asked of it is in `online.asked`."""

    class Hub:
        folders: dict[str, Path] = {}  # noqa: RUF012
        asked: list[dict] = []  # noqa: RUF012

    Hub.folders, Hub.asked = {}, []

    def snapshot_download(repo_id, *, revision=None, allow_patterns=None):
        Hub.asked.append({"name": repo_id, "revision": revision, "patterns": allow_patterns})
        if repo_id not in Hub.folders:
            raise huggingface_hub.errors.LocalEntryNotFoundError("404\n\nno such\nrepository")
        return str(Hub.folders[repo_id])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return Hub


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def export(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["export", *map(str, arguments)])
    return stop.value.code


def refused(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert export(*arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_the_folder_is_a_run_offline_and_its_page_is_the_runs_record(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(runs / "toy_phase1", "--to", "hub", "--out", out, "--licence", "apache-2.0",
                  "--metrics", runs / "figures.json") == 0  # fmt: skip
    assert sorted(p.name for p in out.iterdir()) == NAMES
    assert ", ".join(NAMES) in capsys.readouterr().out
    ours, theirs = (semvq.load_tokenizer(path) for path in (runs / "toy_phase1", out))
    assert ours.code_space_hash() == theirs.code_space_hash()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))
    assert Image.open(out / "picture.png").size[0] > 8 * 16
    page = (out / "README.md").read_text()
    assert page.startswith('---\nlibrary_name: semvq\ntags: ["semvq", "vector-quantization", "i')
    for words in (
        "\nlicense: apache-2.0\n---\n", "\n# toy_phase1\n", "`toy_phase1`: toy",
        "6 steps, 4 images",
        "18 images in 3 classes", "6 images in 3 classes", ours.code_space_hash(),
        "int64 in [0, 16), (B, 4, 4)", "### Protocol reconstruction", "| rfid | 12.3457 |",
        "| images: count | 24 |",
        "Warning: few images\n", "Warning: 1 images could not be read and were left out\n",
        "| images: fingerprint | ab\\|cd |", "Licence: apache-2.0.",
        digest(runs / "toy_phase1" / "model.safetensors"),
    ):  # fmt: skip
        assert words in page, words
    known = json.loads((runs / "toy_phase1" / "finished").read_text())["identity"]["data"][0]
    assert f"`{known}`" in page
    for file in out.iterdir():  # nobody learns where it lay
        assert str(runs).encode() not in file.read_bytes(), file.name


def test_a_generators_folder(runs, tmp_path, capsys):
    run = runs / "toy_nar"
    assert export(run, "--to", "hub", "--out", tmp_path / "a") == 0
    assert "picture.png" not in {p.name for p in (tmp_path / "a").iterdir()}
    out, decoder = tmp_path / "b", runs / "toy_phase1"
    assert export(run, "--to", "hub", "--out", out, "--decoder", decoder) == 0
    assert sorted(p.name for p in out.iterdir()) == NAMES
    page = (out / "README.md").read_text()
    assert "blue, green, red" in page and "load_generator" in page
    assert "No licence was named" in page and "license:" not in page
    codes = [semvq.load_generator(path).sample(2, torch.tensor([0, 1])) for path in (run, out)]
    assert torch.equal(*codes)
    other = tmp_path / "other"
    save_tokenizer(toy_phase1().task.tokenizer.build(), other)
    line = refused(capsys, run, "--to", "hub", "--out", tmp_path / "c", "--decoder", other)
    assert "expected the code space" in line and not (tmp_path / "c").exists()


def test_a_name_is_fetched_checked_and_loaded(runs, published, online):
    online.folders["org/fruit"] = published
    ours = semvq.load_tokenizer(runs / "toy_phase1").code_space_hash()
    for name, revision in (("org/fruit", None), ("org/fruit@v1.0", "v1.0")):
        assert semvq.load_tokenizer(name).code_space_hash() == ours
        patterns = ["model.safetensors", "config.json", "recipe.json", "manifest.json"]
        asked = {"name": "org/fruit", "revision": revision, "patterns": patterns}
        assert online.asked.pop() == asked  # no code is ever fetched
    with pytest.raises(ValueError, match="an AR or NAR run, found a tokenizer run"):
        semvq.load_generator("org/fruit")


def test_paths_are_never_looked_for_on_the_hub(runs, tmp_path, online, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for path in ("runs/frut", "./org/name", "/org/name", "a/b/c", "name", Path("org/name")):
        with pytest.raises(FileNotFoundError, match="found no such folder"):
            semvq.load_tokenizer(path)
    shutil.copytree(runs / "toy_phase1", tmp_path / "org" / "fruit")
    semvq.load_tokenizer("org/fruit")
    assert online.asked == []


def test_damage_and_strangers_are_refused_by_name(published, online, tmp_path):
    online.folders["org/fruit"] = published
    weights = published / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    for name in ("org/fruit", str(published)):
        with pytest.raises(ValueError, match=r"model.safetensors: expected \d+ bytes of sha256"):
            semvq.load_tokenizer(name)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors: expected this file, which"):
        semvq.load_tokenizer("org/fruit")
    manifest = published / "manifest.json"
    for text in ("[]", '{"format": "x"}', "{", '{"format": "semvq files 1", "files": {"../a": 1}}'):
        manifest.write_text(text)
        with pytest.raises(ValueError, match=r"manifest.json: expected"):
            semvq.load_tokenizer("org/fruit")
    manifest.unlink()
    with pytest.raises(FileNotFoundError, match="found none; is this another library's model"):
        semvq.load_tokenizer("org/fruit")
    with pytest.raises(OSError, match="org/none: expected a folder, or a model .* 404 no such rep"):
        semvq.load_tokenizer("org/none")


def test_a_generators_damage_is_found_too(runs, tmp_path, capsys):
    write_hub_folder(runs / "toy_nar", tmp_path / "nar")
    weights = tmp_path / "nar" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match="as in manifest.json"):
        semvq.load_generator(tmp_path / "nar")
    with pytest.raises(SystemExit):
        main(["sample", str(tmp_path / "nar"), "--decoder", str(runs / "toy_phase1")])
    assert "as in manifest.json" in capsys.readouterr().err


def test_without_the_package_one_line_says_so(monkeypatch, published):
    hide(monkeypatch, "huggingface_hub")
    with pytest.raises(FileNotFoundError, match=r"pip install 'semvq\[hub\]'"):
        semvq.load_tokenizer("org/fruit")
    semvq.load_tokenizer(published)  # which needs none


def test_what_is_pushed(runs, published, tmp_path, monkeypatch):
    calls = []

    def create_repo(name, *, private, exist_ok):
        calls.append((name, private, exist_ok))
        return f"https://hub/{name}"

    def upload_folder(*, repo_id, folder_path, allow_patterns, commit_message):
        files = {p.name for p in Path(folder_path).iterdir()} & set(allow_patterns)
        calls.append((repo_id, sorted(files)))

    monkeypatch.setattr(huggingface_hub, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    (published / "secret.txt").write_text("x")
    assert semvq.push_to_hub(published, "org/fruit") == "https://hub/org/fruit"
    assert calls == [("org/fruit", True, True), ("org/fruit", NAMES)]
    semvq.push_to_hub(runs / "toy_phase1", "org/fruit", private=False, licence="mit")
    assert calls[2:] == [("org/fruit", False, True), ("org/fruit", NAMES)]
    with pytest.raises(ValueError, match="found a folder that is made already"):
        semvq.push_to_hub(published, "org/fruit", licence="mit")
    for name in ("fruit", "org/fruit@main", "a/b/c", ""):
        with pytest.raises(ValueError, match="expected a name on the hub, org/name, found"):
            semvq.push_to_hub(published, name)
    with pytest.raises(FileNotFoundError, match="expected the folder of"):
        semvq.push_to_hub(tmp_path / "nowhere", "org/fruit")

    def refuse(*_, **__):
        raise huggingface_hub.errors.LocalTokenNotFoundError("log in\nfirst")

    monkeypatch.setattr(huggingface_hub, "create_repo", refuse)
    with pytest.raises(OSError, match="that you may write to, found log in first"):
        semvq.push_to_hub(published, "org/fruit")
    (published / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="as in manifest.json"):
        semvq.push_to_hub(published, "org/fruit")
    assert len(calls) == 4


def test_the_packages_functions_have_the_arguments_we_give():
    import inspect

    wanted = {
        "snapshot_download": {"revision", "allow_patterns"},
        "create_repo": {"private", "exist_ok"},
        "upload_folder": {"repo_id", "folder_path", "allow_patterns", "commit_message"},
    }
    for name, arguments in wanted.items():
        assert arguments <= set(inspect.signature(getattr(huggingface_hub, name)).parameters)


def test_mistakes_end_in_one_line_and_write_nothing(runs, tmp_path, capsys):
    run, out = runs / "toy_phase1", tmp_path / "out"
    other = json.loads((runs / "figures.json").read_text())
    other["facts"]["model"] = "0" * 64
    for name, text in (("other", json.dumps(other)), ("list", "[1]"), ("text", "hello")):
        (tmp_path / f"{name}.json").write_text(text)
    cases = {
        "expected figures of the weights": ["--metrics", tmp_path / "other.json"],
        "wrote, found none": ["--metrics", tmp_path / "absent.json"],
        "--json` writes, found another file": ["--metrics", tmp_path / "list.json"],
        "expected JSON, found something else": ["--metrics", tmp_path / "text.json"],
        "expected a licence as the hub calls them": ["--licence", "mine:\nall"],
        "expected no decoder of a tokenizer": ["--decoder", run],
    }
    for words, more in cases.items():
        line = refused(capsys, run, "--to", "hub", "--out", out, *more)
        assert words in line and not out.exists(), line
    line = refused(capsys, run, "--to", "hub", "--out", runs)
    assert "expected a new folder" in line
    line = refused(capsys, tmp_path / "none", "--to", "hub", "--out", out)
    assert "found no such folder" in line


class OwnQuantizer(VectorQuantizer):
    """A rule of somebody's own."""


@dataclass(frozen=True)
class OwnHubQuantizerConfig(VectorQuantizerConfig):
    def build(self) -> OwnQuantizer:
        return OwnQuantizer(self)


def test_runs_without_a_recipe_and_with_own_classes(tmp_path):
    config = toy_phase1().task.tokenizer
    origin = {"from": "taming", "file": "last.ckpt", "sha256": "ab" * 32}
    save_tokenizer(config.build(), tmp_path / "a", {"classes": [], "converted": origin})
    write_hub_folder(tmp_path / "a", tmp_path / "out-a")
    page = (tmp_path / "out-a" / "README.md").read_text()
    assert "| converted from | taming: last.ckpt |" in page and "ab" * 32 in page
    own = type(config)(**{**vars(config), "quantizer": OwnHubQuantizerConfig(16, 8)})
    save_tokenizer(own.build(), tmp_path / "b")
    write_hub_folder(tmp_path / "b", tmp_path / "out-b")
    page = (tmp_path / "out-b" / "README.md").read_text()
    assert "OwnHubQuantizerConfig: not in semvq. Import the file" in page
    assert "| record | none |" in page


def test_which_text_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("a/b", "org/name.v-2_x", "a/b@main", "a/b@refs/pr/1", "0/1")
    assert all(map(hub.is_name, names))
    texts = ("a", "a/", "/b", "a/b/c", ".a/b", "a/.b", "a b/c", "a/b@", "a/b\n", "~/b", "ä/b")
    assert not any(map(hub.is_name, texts))
