"""Generators on disk: the round trip, and every way in which a folder can be wrong."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from semvq.generators.ar import ARConfig
from semvq.generators.base import Generator
from semvq.generators.files import load_generator, save_generator
from semvq.generators.nar import NARConfig


def tiny(kind: type[ARConfig] | type[NARConfig]) -> Generator:
    torch.manual_seed(0)
    return kind(
        num_layers=2, width=16, num_heads=2, num_codes=11, grid_height=4, grid_width=3,
        num_classes=3, conditioning_dropout=0.2,
    ).build()  # fmt: skip


@pytest.mark.parametrize("kind", [ARConfig, NARConfig])
def test_save_and_load(kind, tmp_path: Path):
    generator = tiny(kind).eval()
    extra = {"code_space_hash": "abc", "classes": ["apple", "pear", "plum"]}
    save_generator(generator, tmp_path / "run", extra)
    save_generator(generator, tmp_path / "run", extra)  # over an older one
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    loaded = load_generator(str(tmp_path / "run"))
    assert type(loaded) is type(generator) and loaded.config == generator.config
    assert loaded.extra == extra and not loaded.training
    assert all(p.requires_grad for p in loaded.parameters())
    codes, classes = torch.arange(24).view(2, 12) % 11, torch.tensor([2, 0])
    assert torch.equal(loaded(codes, classes), generator(codes, classes))
    assert torch.equal(loaded.sample(2, classes), generator.sample(2, classes))


def saved(folder: Path) -> Path:
    save_generator(tiny(ARConfig), folder, {})
    return folder


def test_missing_files_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        load_generator(tmp_path / "nowhere")
    (saved(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        load_generator(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "expected a generator's configuration"),
        ('{"tokenizer": {}}', "expected a generator's configuration"),
        ('{"generator": {"kind": "Elephant"}}', "found class 'Elephant'"),
        ('{"generator": {"kind": "ARConfig"}}', "expected a key 'num_layers'"),
    ],
)
def test_damaged_configurations_are_refused(tmp_path: Path, text, message):
    (saved(tmp_path) / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_generator(tmp_path)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    description = json.loads(path.read_text())
    description["generator"] |= changes
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 3}, "found key 'depth'"),
        ({"width": 10**7}, "expected shape .*10000000"),  # refused before it is allocated
        ({"num_layers": 3}, "expected a tensor 'blocks.2"),
        ({"num_layers": 1}, "unknown tensor 'blocks.1"),
        ({"kind": "GeneratorConfig"}, "expected ARConfig, NARConfig"),
    ],
)
def test_a_configuration_of_another_model_is_refused(tmp_path: Path, changes, message):
    edit_config(saved(tmp_path), **changes)
    with pytest.raises(ValueError, match=message):
        load_generator(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path):
    path = saved(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-100], b"", pickle.dumps({"a": 1}), b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="expected a whole safetensors file"):
            load_generator(tmp_path)
    path.write_bytes(whole)
    tensors = load_file(path)
    save_file({f"model.{n}": t for n, t in tensors.items()}, path)
    with pytest.raises(ValueError, match="expected a tensor 'blocks.0"):
        load_generator(tmp_path)
