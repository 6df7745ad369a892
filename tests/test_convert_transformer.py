"""taming's transformer, converted: the same logits as a forward pass of the published layout."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semvq import load_generator
from semvq.cli import main
from tests.foreign import Oracle, Taming, Weights
from tests.test_convert import SIDE, narrow

LAYERS, WIDTH, HEADS, GRID = 2, 12, 3, 8
LENGTH, EXTRA = GRID * GRID, 4  # positions, and how many more the file has


class GPT:
    """Tokens (B, N), of which the first is the class or 0, to logits (B, N, K)."""

    def __init__(self, codes: int) -> None:
        self.weights, self.codes = Weights(seed=3), codes
        self(torch.zeros(1, LENGTH, dtype=torch.int64))
        mask = torch.ones(LENGTH + EXTRA, LENGTH + EXTRA).tril()[None, None]
        self.weights |= {f"blocks.{n}.attn.mask": mask.clone() for n in range(LAYERS)}

    def __call__(self, tokens: Tensor) -> Tensor:
        w, length = self.weights, tokens.shape[1]
        x = F.embedding(tokens, w.of("tok_emb.weight", self.codes, WIDTH))
        x = x + w.of("pos_emb", 1, LENGTH + EXTRA, WIDTH)[:, :length]
        for n in range(LAYERS):
            x = x + self.attention(f"blocks.{n}.attn", self.norm(f"blocks.{n}.ln1", x))
            h = self.linear(f"blocks.{n}.mlp.0", self.norm(f"blocks.{n}.ln2", x), 4 * WIDTH)
            h = h * 0.5 * (1 + torch.erf(h / 2**0.5))
            x = x + self.linear(f"blocks.{n}.mlp.2", h, WIDTH)
        return self.norm("ln_f", x) @ w.of("head.weight", self.codes, WIDTH).T

    def attention(self, name: str, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            self.linear(f"{name}.{part}", x, WIDTH).view(b, n, HEADS, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(2, 3) / (WIDTH // HEADS) ** 0.5
        later = torch.ones(n, n).triu(1).bool()
        mixed = torch.softmax(scores.masked_fill(later, -torch.inf), dim=3) @ v
        return self.linear(f"{name}.proj", mixed.transpose(1, 2).reshape(b, n, WIDTH), WIDTH)

    def linear(self, name: str, x: Tensor, out: int) -> Tensor:
        weight = self.weights.of(f"{name}.weight", out, x.shape[2], scale=0.3)
        return x @ weight.T + self.weights.of(f"{name}.bias", out, scale=0.1)

    def norm(self, name: str, x: Tensor) -> Tensor:
        gain = self.weights.of(f"{name}.weight", WIDTH, near=1, scale=0.2)
        return F.layer_norm(x, (WIDTH,), gain, self.weights.of(f"{name}.bias", WIDTH), 1e-5)


def write(gpt: GPT, tokenizer: Oracle, path: Path) -> Path:
    state = {f"transformer.{k}": v for k, v in gpt.weights.items()}
    state |= {f"first_stage_model.{k}": v for k, v in tokenizer.weights.items()}
    torch.save({"state_dict": state}, path)
    return path


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


def convert(path: Path, out: Path, classes: int, tokenizer: Path) -> int:
    return call(
        "convert", path, "--from", "taming-transformer", "--heads", HEADS, "--classes", classes,
        "--tokenizer", tokenizer, "--out", out,
    )  # fmt: skip


@pytest.fixture
def both(tmp_path) -> tuple[GPT, Oracle, Path]:
    """A transformer's file of both models, and the run of its tokenizer beside it."""
    tokenizer = narrow(Taming)()
    gpt = GPT(tokenizer.codes)
    path = write(gpt, tokenizer, tmp_path / "last.ckpt")
    run = tmp_path / "tokenizer"
    assert call("convert", path, "--from", "taming", "--out", run, "--resolution", SIDE) == 0
    return gpt, tokenizer, path


@pytest.mark.parametrize("num_classes", [5, 0])
@torch.no_grad()
def test_logits_are_the_authors(num_classes, both, tmp_path):
    gpt, _, path = both
    assert convert(path, tmp_path / "run", num_classes, tmp_path / "tokenizer") == 0
    generator = load_generator(tmp_path / "run")
    codes = torch.randint(gpt.codes, (3, LENGTH))
    classes = torch.tensor([0, 4, 2]) if num_classes else None
    start = torch.zeros(3, 1, dtype=torch.int64) if classes is None else classes[:, None]
    expected = gpt(torch.cat([start, codes[:, :-1]], dim=1))
    torch.testing.assert_close(generator(codes, classes), expected, rtol=1e-5, atol=1e-5)


def test_it_samples_with_the_tokenizer_of_the_same_file(both, tmp_path):
    _, _, path = both
    assert convert(path, tmp_path / "run", 5, tmp_path / "tokenizer") == 0
    out = tmp_path / "samples"
    sample = ("sample", tmp_path / "run", "--num", 2, "--class", 3, "--out", out, "--device", "cpu")
    assert call(*sample, "--decoder", tmp_path / "tokenizer") == 0
    assert (out / "grid.png").exists()
    extra = json.loads((tmp_path / "run" / "config.json").read_text())["extra"]
    assert extra["converted"]["from"] == "taming-transformer"


def test_what_is_not_exactly_ours_is_refused(both, tmp_path, capsys):
    gpt, tokenizer, _ = both
    whole = dict(gpt.weights)

    def refused(change: dict[str, Tensor], drop: str = "") -> str:
        gpt.weights.update(change)
        gpt.weights.pop(drop, None)
        path = write(gpt, tokenizer, tmp_path / "changed.ckpt")
        gpt.weights.clear()
        gpt.weights.update(whole)
        capsys.readouterr()
        assert convert(path, tmp_path / "run", 5, tmp_path / "tokenizer") == 2
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err

    sees = torch.ones_like(whole["blocks.1.attn.mask"])
    assert "transformer.blocks.1.attn.mask" in refused({"blocks.1.attn.mask": sees})
    assert "'blocks.0.mlp.2.bias'" in refused({}, drop="blocks.0.mlp.2.bias")
    assert "'blocks.9.x'" in refused({"blocks.9.x": torch.ones(1)})
    assert "24 codes" in refused({"tok_emb.weight": torch.ones(40, WIDTH)})
    assert "'head.weight' of shape" in refused({"head.weight": torch.ones(25, WIDTH)})
    assert "'pos_emb' of shape" in refused({"pos_emb": torch.ones(1, 70, 5)})
    tokenizer.weights["quant_conv.bias"] += 1
    assert "semvq convert" in refused({})


def test_options_that_go_together(both, tmp_path, capsys):
    _, _, path = both
    start = ("convert", path, "--out", tmp_path / "run", "--from")
    assert call(*start, "taming-transformer", "--heads", 3) == 2
    assert "--tokenizer: expected with --from taming-transformer" in capsys.readouterr().err
    assert call(*start, "taming", "--heads", 3) == 2
    assert "--heads: expected with --from taming-transformer" in capsys.readouterr().err
