"""Other people's tokenizers, converted: the same codes and pixels, or refused by name."""

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import semvq
from semvq import convert_command
from semvq.cli import main
from semvq.evaluation import features
from semvq.interop import opening
from semvq.tokenizer.files import load_tokenizer, save_tokenizer, tokenizer_extra
from tests.evaluation_toy import toy_network
from tests.foreign import Diffusers, LlamaGen, MaskGIT, Oracle, Taming
from tests.toy import photos, toy_phase1

SIDE = 16


def write(oracle: Oracle, folder: Path) -> Path:
    """The file that the format's authors publish."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(oracle.weights)
    if isinstance(oracle, Diffusers):
        save_file(weights, folder / "diffusion_pytorch_model.safetensors")
        (folder / "config.json").write_text(json.dumps(oracle.settings))
        return folder
    if isinstance(oracle, LlamaGen):
        path = folder / "vq.pt"
        torch.save({"model": weights | {"quantize.codebook_used": torch.zeros(99)}}, path)
    elif isinstance(oracle, MaskGIT):
        torch.save(weights, path := folder / "maskgit.bin")
    else:
        loss = {"loss.discriminator.main.0.weight": torch.zeros(3), "loss.logvar": torch.zeros(())}
        state = OrderedDict(weights | loss)
        torch.save({"state_dict": state, "global_step": 7}, path := folder / "last.ckpt")
    return path


def source(oracle: Oracle) -> str:
    return type(oracle).__name__.lower()


def narrow(kind: type[Oracle]) -> Callable[[], Oracle]:
    """The same layout, fewer channels: quicker."""
    return lambda: kind(channels=32)


def convert(oracle: Oracle, path: Path, out: Path, *more: str) -> int:
    arguments = ["convert", str(path), "--from", source(oracle), "--out", str(out)]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--resolution", str(SIDE), *more])
    return int(stop.value.code or 0)


def refused(capsys, oracle: Oracle, path: Path, out: Path, *more: str) -> str:
    capsys.readouterr()
    assert convert(oracle, path, out, *more) == 2
    assert not out.exists()
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("semvq: error: ")
    return lines[0]


# each of them once with the networks of `rivals`, or with a feature that these do not have
ORACLES: dict[str, tuple[Callable[[], Oracle], str]] = {
    "taming": (Taming, "VQGANConfig"),
    "taming-without-attention": (lambda: Taming(attends=()), "ForeignVQGANConfig"),
    "taming-narrow": (narrow(Taming), "ForeignVQGANConfig"),
    "llamagen": (narrow(LlamaGen), "ForeignVQGANConfig"),
    "maskgit": (MaskGIT, "UnitRangeConfig"),
    "diffusers": (Diffusers, "ForeignVQGANConfig"),
    "diffusers-amused": (lambda: Diffusers(middle=False), "ForeignVQGANConfig"),
    "diffusers-attention": (lambda: Diffusers(attends=(0, 1)), "ForeignVQGANConfig"),
}


@pytest.mark.parametrize("name", ORACLES)
@torch.no_grad()
def test_codes_and_pixels_are_the_authors(name, tmp_path):
    make, kind = ORACLES[name]
    oracle = make()
    assert convert(oracle, write(oracle, tmp_path / "theirs"), tmp_path / "run") == 0
    tokenizer = semvq.load_tokenizer(tmp_path / "run")
    assert type(tokenizer.config).__name__ == kind
    images = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    codes = oracle.encode(images)
    assert codes.shape == (2, 16, 12) and len(codes.unique()) > 5
    assert torch.equal(tokenizer.encode(images), codes)
    pixels = oracle.decode(codes)
    assert pixels.std() > 0.1
    torch.testing.assert_close(tokenizer.decode(codes), pixels, rtol=1e-5, atol=1e-5)
    seen, quantized = tokenizer(images)
    assert torch.equal(quantized.codes, codes)
    torch.testing.assert_close(seen, pixels, rtol=1e-5, atol=1e-5)


def test_a_run_says_where_it_is_from(tmp_path):
    oracle = MaskGIT()
    path = write(oracle, tmp_path)
    convert(oracle, path, tmp_path / "run")
    origin = tokenizer_extra(tmp_path / "run")["converted"]
    digest = opening.open_weights(path).sha256
    assert len(digest) == 64
    assert origin == {
        "from": "maskgit", "file": "maskgit.bin", "sha256": digest, "config_sha256": None,
        "pixel_range": "[0, 1]", "left_out": [], "asked_to_run": [],
    }  # fmt: skip
    assert not [
        p.name for p in (tmp_path / "run").iterdir() if p.suffix not in (".json", ".safetensors")
    ]


def test_a_run_is_there_whole_or_not_at_all(tmp_path, monkeypatch, capsys):
    def half_done(tokenizer, folder, extra):
        save_tokenizer(tokenizer, folder, extra)
        raise OSError("No space left on device")

    path = write(MaskGIT(), tmp_path)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(convert_command, "save_tokenizer", half_done)
    assert "No space left on device" in refused(capsys, MaskGIT(), path, tmp_path / "run")
    assert sorted(tmp_path.iterdir()) == before


def test_of_a_folder_the_record_has_the_weight_file(tmp_path):
    oracle = Diffusers()
    folder = write(oracle, tmp_path / "vqvae")
    assert convert(oracle, folder, tmp_path / "run") == 0
    origin = tokenizer_extra(tmp_path / "run")["converted"]
    assert origin["file"] == "vqvae/diffusion_pytorch_model.safetensors"
    assert origin["sha256"] == opening.open_weights(tmp_path / origin["file"]).sha256


def test_the_source_is_looked_at_before_its_configuration(tmp_path, capsys):
    oracle, out = Diffusers(), tmp_path / "run"
    line = refused(capsys, oracle, tmp_path / "nowhere", out)
    assert "nowhere: expected a file with weights or its folder, found nothing there" in line
    line = refused(capsys, Taming(channels=32), tmp_path, out)
    assert f"{tmp_path}: expected a file with weights, found a folder" in line
    data = (write(oracle, tmp_path / "vqvae") / "diffusion_pytorch_model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-100])
    line = refused(capsys, oracle, tmp_path / "cut.safetensors", out)
    assert f"{tmp_path / 'cut.safetensors'}: expected a safetensors file" in line


def test_what_tensors_do_not_tell_is_part_of_the_code_space(tmp_path):
    oracle = Diffusers()
    spaces = []
    for groups in (8, 16):
        folder = write(oracle, tmp_path / str(groups))
        settings = oracle.settings | {"norm_num_groups": groups}
        (folder / "config.json").write_text(json.dumps(settings))
        assert convert(oracle, folder, tmp_path / f"run{groups}") == 0
        spaces.append(load_tokenizer(tmp_path / f"run{groups}").code_space_hash())
    assert spaces[0] != spaces[1]


@torch.no_grad()
def test_older_names_of_diffusers_attention(tmp_path):
    oracle = Diffusers(attends=(1,))
    folder = write(oracle, tmp_path / "theirs")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, tensor in oracle.weights.items():
        for now, before in old.items():
            name = name.replace(f".{now}.", f".{before}.")
        weights[name] = tensor
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(weights, folder / "diffusion_pytorch_model.bin")
    assert convert(oracle, folder, tmp_path / "run") == 0
    images = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
    assert torch.equal(load_tokenizer(tmp_path / "run").encode(images), oracle.encode(images))


# --- strict -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [narrow(Taming), narrow(LlamaGen), MaskGIT, Diffusers])
def test_wrong_tensors_are_refused_by_name(make, tmp_path, capsys):
    oracle = make()
    whole = dict(oracle.weights)

    def attempt(change: Callable[[Oracle], object]) -> str:
        change(oracle)
        path = write(oracle, tmp_path / "theirs")
        oracle.weights.clear()
        oracle.weights.update(whole)
        return refused(capsys, oracle, path, tmp_path / "run")

    last, conv = "decoder.conv_out.bias", "decoder.conv_in.weight"
    line = attempt(lambda o: o.weights.pop(last))
    assert f"expected the tensor '{last}'" in line and "found none" in line
    line = attempt(lambda o: o.weights.pop("encoder.conv_in.weight"))
    assert "'encoder.conv_in.weight'" in line and "--from" in line
    line = attempt(lambda o: o.weights.update({"encoder.extra.weight": torch.zeros(2)}))
    assert "found 'encoder.extra.weight' too" in line
    line = attempt(lambda o: o.weights.update({conv: torch.zeros(2, 3, 1, 1)}))
    assert f"expected '{conv}' of shape" in line and "found (2, 3, 1, 1)" in line
    line = attempt(lambda o: o.weights.update({last: torch.full((3,), torch.nan)}))
    assert f"expected '{last}' of finite numbers" in line
    line = attempt(lambda o: o.weights.update({last: torch.zeros(3, dtype=torch.int64)}))
    assert f"expected '{last}' of finite numbers, found torch.int64" in line


def test_another_format_is_named_as_the_likely_cause(tmp_path, capsys):
    oracles = [narrow(Taming)(), narrow(LlamaGen)(), MaskGIT()]
    for oracle in oracles:
        path = write(oracle, tmp_path / source(oracle))
        for other in oracles:
            if other is not oracle:
                line = refused(capsys, other, path, tmp_path / "run")
                assert "see --from" in line or "expected widths" in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm_type": "spatial"}, "expected norm_type 'group', found 'spatial'"),
        ({"act_fn": "relu"}, "expected act_fn 'silu'"),
        ({"in_channels": 4}, "expected in_channels 3, found 4"),
        ({"_class_name": "AutoencoderKL"}, "expected the configuration of a VQModel, found Auto"),
        ({"attention_kind": "x"}, "expected keys of a VQModel, found 'attention_kind'"),
        ({"down_block_types": ["DownBlock2D"] * 2}, "found 'DownBlock2D'"),
        ({"down_block_types": ["DownEncoderBlock2D"]}, "that mirror each other"),
        ({"down_block_types": 3}, "expected a saved model"),
        ({"layers_per_block": "2"}, "whole numbers above 0"),
        ({"layers_per_block": 2}, "decoder.up_blocks.0.resnets.2"),
        ({"layers_per_block": 10**9}, "blocks_per_level"),
        ({"block_out_channels": [16, 64]}, "of shape"),
        ({"block_out_channels": []}, "whole numbers above 0"),
        ({"norm_num_groups": 5}, "multiples of norm_groups"),
        ({"num_vq_embeddings": 10**12}, "quantize.embedding.weight"),
    ],
)
def test_settings_that_ours_have_not_are_refused(change, words, tmp_path, capsys):
    oracle = Diffusers()
    folder = write(oracle, tmp_path / "theirs")
    (folder / "config.json").write_text(json.dumps(oracle.settings | change))
    assert words in refused(capsys, oracle, folder, tmp_path / "run")


def test_mistakes_of_the_command_line(tmp_path, capsys):
    oracle, out = narrow(Taming)(), tmp_path / "run"
    path = write(oracle, tmp_path)
    assert "expected a file with weights" in refused(capsys, oracle, tmp_path / "absent", out)
    assert "--config" in refused(capsys, oracle, path, out, "--config", str(path))
    assert "multiple of f = 2" in refused(capsys, oracle, path, out, "--resolution", "15")
    assert "at least 1" in refused(capsys, oracle, path, out, "--resolution", "0")
    assert "is it of another format? see --from" in refused(capsys, Diffusers(), path, out)
    save_file(Diffusers().weights, alone := tmp_path / "alone.safetensors")
    line = refused(capsys, Diffusers(), alone, out)
    assert "expected the model's config.json, found none; name it with --config" in line
    (tmp_path / "empty").mkdir()
    assert "found neither" in refused(capsys, Diffusers(), tmp_path / "empty", out)
    assert convert(oracle, path, out) == 0
    assert convert(oracle, path, out) == 2
    assert "expected a new folder" in capsys.readouterr().err


# --- a run like any other -------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Taming, MaskGIT])
def test_a_converted_run_reconstructs_and_encodes(make, tmp_path, capsys):
    oracle = make()
    convert(oracle, write(oracle, tmp_path), tmp_path / "run")
    photos(tmp_path / "PHOTOS", per_class=3)
    first = str(tmp_path / "PHOTOS" / "red" / "0.png")
    for arguments in (
        ["reconstruct", str(tmp_path / "run"), first, "--out", str(tmp_path / "sheet.png")],
        ["encode", str(tmp_path / "run"), "--data", str(tmp_path / "PHOTOS"), "--val",
         str(tmp_path / "PHOTOS"), "--out", str(tmp_path / "tokens")],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--device", "cpu"])
        assert stop.value.code == 0, capsys.readouterr().err
    assert (tmp_path / "sheet.png").exists() and (tmp_path / "tokens" / "train").is_dir()


@pytest.mark.slow
def test_converted_runs_are_judged_like_any_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(features.NETWORKS, "inception", toy_network())
    photos(tmp_path / "PHOTOS", per_class=3)
    for name, oracle in (("a", narrow(LlamaGen)()), ("b", Diffusers())):
        assert convert(oracle, write(oracle, tmp_path / f"file-{name}"), tmp_path / name) == 0
    save_tokenizer(toy_phase1().task.tokenizer.build(), tmp_path / "ours", {"classes": []})
    for command in (
        "evaluate a --protocol reconstruction --data PHOTOS --json figures.json",
        "compare a ours b --data PHOTOS --photos 2 --out page.html --json page.json",
    ):
        with pytest.raises(SystemExit) as stop:
            main([*command.split(), "--device", "cpu"])
        assert stop.value.code == 0, capsys.readouterr().err
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert figures["num_images"] == 9 and figures["psnr"] > 0
    assert list(json.loads((tmp_path / "page.json").read_text())["figures"]) == ["a", "ours", "b"]
