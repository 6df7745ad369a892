"""Tokenizers as ONNX graphs: the codes and pixels of torch, or refused by one line."""

import json
from dataclasses import dataclass, replace

import pytest
import torch

from semvq.cli import main
from semvq.interop import onnx_graphs
from semvq.interop.networks import UnitRangeConfig
from semvq.interop.onnx_graphs import TIE, Agreement, agreement, export_onnx
from semvq.interop.onnx_rules import nearest_in_graph, rule_of
from semvq.interop.packaged import packaged_photos
from semvq.rivals.factorized import FactorizedQuantizerConfig
from semvq.rivals.kmeans import KMeansQuantizerConfig
from semvq.rivals.movq import MoVQConfig
from semvq.rivals.multichannel import MultichannelQuantizerConfig
from semvq.rivals.residual import ResidualQuantizerConfig
from semvq.rivals.vit import ViTTokenizerConfig
from semvq.rivals.vqgan import VQGANConfig
from semvq.tokenizer import regional
from semvq.tokenizer.conv import ConvTokenizerConfig
from semvq.tokenizer.files import save_tokenizer
from semvq.tokenizer.model import Tokenizer, TokenizerConfig
from semvq.tokenizer.nearest import nearest_code
from semvq.tokenizer.quantize import (
    UnquantizedConfig,
    VectorQuantizer,
    VectorQuantizerConfig,
)
from tests.absent import hide

PLAIN = VectorQuantizerConfig(num_codes=64, code_dim=8)
MULTI = MultichannelQuantizerConfig(num_codes=64, code_dim=8, channels=2)
RESIDUAL = ResidualQuantizerConfig(num_codes=64, code_dim=8, depth=3)
FACTORIZED = FactorizedQuantizerConfig(num_codes=64, code_dim=8, factor_dim=4)
KMEANS = KMeansQuantizerConfig(num_codes=64, code_dim=8, kept=64)
CONV = ConvTokenizerConfig(
    resolution=32, channels=16, multipliers=(1, 2), blocks_per_level=1, middle_blocks=1,
    quantizer=PLAIN,
)  # fmt: skip
VQGAN = {"resolution": 32, "channels": 32, "multipliers": (1, 2), "blocks_per_level": 1,
         "attention_side": 16}  # fmt: skip
TOKENIZERS = {
    "conv": CONV,
    "conv-attention": replace(CONV, decoder_attention_pairs=1),
    "unit-range": UnitRangeConfig(
        resolution=32, channels=16, multipliers=(1, 2), blocks_per_level=1, quantizer=PLAIN
    ),
    "vqgan-factorized": VQGANConfig(**VQGAN, quantizer=FACTORIZED),
    "vqgan-residual": VQGANConfig(**VQGAN, quantizer=RESIDUAL),
    "movq": MoVQConfig(**VQGAN, quantizer=MULTI),
    "vit": ViTTokenizerConfig(
        resolution=32, patch=8, num_layers=2, width=32, num_heads=2, quantizer=PLAIN
    ),
}


def make(config: TokenizerConfig, seed: int = 0) -> Tokenizer:
    """A tokenizer whose codes are latents of photos, so that many of them are used."""
    torch.manual_seed(seed)
    tokenizer = config.build().eval().requires_grad_(False)
    photos = packaged_photos(config.resolution)
    tokenizer.quantizer.initialize(tokenizer.latents(photos))
    for pair in tokenizer.decoder.modules():  # new attention is the identity: make it count
        if hasattr(pair, "proj") and not pair.proj.weight.any():
            torch.nn.init.normal_(pair.proj.weight, std=0.3)
    return tokenizer


def refused(capsys, *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize("quantizer", [PLAIN, MULTI, RESIDUAL, FACTORIZED, KMEANS],
                         ids=lambda q: type(q).__name__)  # fmt: skip
@torch.no_grad()
def test_a_rule_with_the_quantizers_search_gives_its_codes(quantizer):
    tokenizer = make(replace(CONV, quantizer=quantizer))
    photos = packaged_photos(32)
    latents, rule = tokenizer.latents(photos), rule_of(tokenizer.quantizer)
    codes = tokenizer.encode(photos)
    assert len(codes.unique()) > 30
    assert torch.equal(rule(tokenizer.quantizer, latents, nearest_code), codes)

    def encode(images):
        return rule(tokenizer.quantizer, tokenizer.latents(images), nearest_in_graph)

    found = agreement(tokenizer, encode, tokenizer.decode)
    assert found.codes == codes.numel() and found.others == 0 and found.pixels == 0
    assert found.ties <= codes.numel() // 200


@torch.no_grad()
def test_near_ties_are_counted_and_other_differences_found():
    tokenizer = make(replace(CONV, quantizer=RESIDUAL))
    photos = packaged_photos(32)
    codes = tokenizer.encode(photos)
    book = tokenizer.quantizer.codebook
    first, twin = codes[0, 0, 0], (codes[0, 0, 0] + 1) % 64
    far = codes.clone()
    far[0, 0, 0] = twin
    wrong = agreement(tokenizer, lambda _: far, tokenizer.decode)
    assert (wrong.ties, wrong.others) == (0, 1)
    far[0, 16, 0] = (far[0, 16, 0] + 1) % 64  # the next depth there follows from the first
    far[1, 16, 0] = (far[1, 16, 0] + 1) % 64
    assert agreement(tokenizer, lambda _: far, tokenizer.decode).others == 2
    book[twin] = book[first] + TIE / 100 * book.std()
    codes = tokenizer.encode(photos)
    near = torch.where(codes == first, twin, torch.where(codes == twin, first, codes))
    tied = agreement(tokenizer, lambda _: near, tokenizer.decode)
    assert tied.ties > 0 and tied.others == 0
    broken = agreement(tokenizer, lambda _: codes, lambda x: tokenizer.decode(x) + 1e-2)
    assert broken.pixels > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
@torch.no_grad()
def test_onnxruntime_has_the_codes_and_pixels_of_torch(name, tmp_path, capfd, monkeypatch):
    import onnxruntime

    # attention of larger batches than three would be cut, and is not in a graph
    monkeypatch.setattr(regional, "_MAX_SEQUENCES", 200)
    tokenizer = make(TOKENIZERS[name])
    found = export_onnx(tokenizer, tmp_path / "out")
    assert capfd.readouterr().out == ""
    assert found.others == 0 and found.ties <= found.codes // 200 and found.pixels <= 1e-4
    encode, decode = (
        onnxruntime.InferenceSession(tmp_path / "out" / f, providers=["CPUExecutionProvider"])
        for f in ("encode.onnx", "decode.onnx")
    )
    photos = packaged_photos(32)
    assert len(tokenizer.encode(photos).unique()) > 30
    for batch in (1, 2, 5):  # any number, the example's two among them
        part = photos[:batch]
        (codes,) = encode.run(["codes"], {"images": part.numpy()})
        expected = tokenizer.encode(part)
        assert codes.dtype == "int64" and codes.shape == tuple(expected.shape)
        follow = tokenizer.quantizer.codes_per_place  # codes that a tie may change
        assert (codes != expected.numpy()).sum() <= found.ties * follow
        (pixels,) = decode.run(["images"], {"codes": expected.numpy()})
        expected = tokenizer.decode(expected)
        assert expected.std() > 0.05
        torch.testing.assert_close(torch.from_numpy(pixels), expected, rtol=0, atol=1e-4)
    facts = json.loads((tmp_path / "out" / "onnx.json").read_text())
    assert facts["code_space_hash"] == tokenizer.code_space_hash()
    assert facts["encode"]["images"]["shape"] == ["batch", 3, 32, 32]
    assert facts["decode"]["codes"]["shape"][1:] == list(tokenizer.grid)


@pytest.mark.slow
def test_the_command_writes_a_new_folder_and_says_how_it_agrees(tmp_path, capsys):
    save_tokenizer(make(CONV), tmp_path / "run")
    with pytest.raises(SystemExit) as stop:
        main(["export", str(tmp_path / "run"), "--to", "onnx", "--out", str(tmp_path / "a" / "b")])
    assert stop.value.code == 0
    assert "decode.onnx, encode.onnx, onnx.json; on packaged photos" in capsys.readouterr().out
    names = sorted(p.name for p in (tmp_path / "a" / "b").iterdir())
    assert names == ["decode.onnx", "encode.onnx", "onnx.json"]


@pytest.mark.slow
def test_graphs_that_disagree_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graphs, "PIXELS", -1.0)
    with pytest.raises(ValueError, match="expected graphs that agree with torch, found 0 of"):
        export_onnx(make(CONV), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_is_stopped_leaves_nothing_and_can_be_run_again(tmp_path, monkeypatch):
    def write(module, example, names, path):
        path.write_text("a graph")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx_graphs, "_packages", lambda: None)
    monkeypatch.setattr(onnx_graphs, "_write", write)
    tokenizer, out = CONV.build().eval(), tmp_path / "a" / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(onnx_graphs, "_tried", stop)
        export_onnx(tokenizer, out)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(onnx_graphs, "_tried", lambda *_: Agreement(1, 0, 0, 0.0))
    (tmp_path / "empty").mkdir(mode=0o750)
    for folder in (out, tmp_path / "empty"):
        export_onnx(tokenizer, folder)
        assert [p.name for p in sorted(folder.iterdir())] == [
            "decode.onnx", "encode.onnx", "onnx.json",
        ]  # fmt: skip
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o750
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "empty"]


class OwnQuantizer(VectorQuantizer):
    """A rule of somebody's own."""


@dataclass(frozen=True)
class OwnQuantizerConfig(VectorQuantizerConfig):
    def build(self) -> OwnQuantizer:
        return OwnQuantizer(self)


def test_what_makes_no_graph_is_refused_by_name(tmp_path, capsys):
    own = OwnQuantizerConfig(num_codes=64, code_dim=8)
    none = UnquantizedConfig(code_dim=8)
    cases = {"found OwnQuantizer": own, "found a plain autoencoder": none}
    for index, (words, quantizer) in enumerate(cases.items()):
        run, out = tmp_path / f"run{index}", tmp_path / f"out{index}"
        save_tokenizer(replace(CONV, quantizer=quantizer).build(), run)
        line = refused(capsys, "export", str(run), "--to", "onnx", "--out", str(out))
        assert words in line and not out.exists()
    run = ["export", str(tmp_path / "run0"), "--to", "onnx", "--out"]
    assert "expected a new folder" in refused(capsys, *run, str(tmp_path / "run1"))
    line = refused(capsys, *run, str(tmp_path / "out"), "--licence", "mit")
    assert "--licence: expected --to hub" in line
    assert "no such folder" in refused(
        capsys, "export", "nowhere", "--to", "onnx", "--out", str(tmp_path / "out")
    )


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    hide(monkeypatch, package)
    with pytest.raises(ValueError, match=rf"{package}'; install them with: pip install"):
        export_onnx(CONV.build().eval(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
