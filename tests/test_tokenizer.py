"""The tokenizer: exact sizes, shapes, phase 2, code-space hash, saving and loading."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from semvq.tokenizer.conv import ConvTokenizerConfig, ResidualBlock
from semvq.tokenizer.files import load_tokenizer, save_tokenizer, tokenizer_extra
from semvq.tokenizer.model import Tokenizer
from semvq.tokenizer.phases import upgrade_decoder
from semvq.tokenizer.quantize import VectorQuantizerConfig
from semvq.tokenizer.regional import BlockAttention

QUANTIZER = VectorQuantizerConfig(num_codes=32, code_dim=8)
TINY = ConvTokenizerConfig(
    resolution=16,
    channels=8,
    multipliers=(1, 1, 2),
    blocks_per_level=1,
    middle_blocks=1,
    quantizer=QUANTIZER,
)


def tiny(seed: int = 0, **changes) -> Tokenizer:
    torch.manual_seed(seed)
    return ConvTokenizerConfig(**{**vars(TINY), **changes}).build()


def images(num: int = 2, size: int = 16, seed: int = 1) -> torch.Tensor:
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 54_515_587),
        ({"decoder_attention_pairs": 1}, 57_938_819),
        ({"decoder_attention_pairs": 2}, 61_362_051),
        ({"decoder_extra_blocks": 2}, 69_861_251),
    ],
)
def test_parameter_counts_of_table_1(changes, count):
    with torch.device("meta"):
        assert num_parameters(ConvTokenizerConfig(**changes).build()) == count


def test_layout_is_maskgits():
    with torch.device("meta"):
        tokenizer = ConvTokenizerConfig().build()
    blocks = {n: m for n, m in tokenizer.named_modules() if isinstance(m, ResidualBlock)}
    changing = [n for n, m in blocks.items() if m.shortcut is not None]
    assert changing == [
        "encoder.levels.2.blocks.0",
        "encoder.levels.4.blocks.0",
        "decoder.levels.1.blocks.0",
        "decoder.levels.3.blocks.0",
    ]
    assert len(blocks) == 2 * (5 * 2 + 2)
    biases = {n.removesuffix(".bias") for n, _ in tokenizer.named_parameters() if "bias" in n}
    convs = {n for n, m in tokenizer.named_modules() if isinstance(m, nn.Conv2d)}
    upsamples = {f"decoder.levels.{i}.upsample" for i in range(4)}
    ends = {"encoder.conv_out", "decoder.conv_in", "decoder.conv_out"}
    assert biases & convs == ends | upsamples
    norms = [m for m in tokenizer.modules() if isinstance(m, nn.GroupNorm)]
    assert {(m.num_groups, m.eps) for m in norms} == {(32, 1e-6)}


def test_shortcut_reads_the_blocks_output():
    torch.manual_seed(0)
    block = ResidualBlock(8, 16)
    nn.init.zeros_(block.conv2.weight)
    assert block(torch.randn(1, 8, 4, 4)).eq(0).all()


@pytest.mark.parametrize(
    ("multipliers", "factor"), [((1,), 1), ((1, 2), 2), ((1, 1, 2, 2), 8), ((1, 1, 1, 1, 1, 2), 32)]
)
def test_any_power_of_two(multipliers, factor):
    tokenizer = tiny(multipliers=multipliers, resolution=32)
    x = images(1, 32)
    codes = tokenizer.encode(x)
    assert tokenizer.config.factor == factor
    assert codes.shape == (1, *tokenizer.grid) == (1, 32 // factor, 32 // factor)
    assert codes.dtype == torch.int64 and codes.min() >= 0 and codes.max() < 32
    assert tokenizer.decode(codes).shape == x.shape


def test_forward_encode_and_decode_agree():
    tokenizer = tiny(decoder_attention_pairs=1, decoder_extra_blocks=1, attention_heads=2)
    x = images()
    reconstruction, quantized = tokenizer(x)
    assert torch.equal(tokenizer.encode(x), quantized.codes)
    assert torch.equal(tokenizer.decode(quantized.codes), reconstruction)
    wide = torch.cat([x, x], 3)
    assert tokenizer.decode(tokenizer.encode(wide)).shape == wide.shape


def test_autocast_keeps_the_codes_islands_in_fp32():
    tokenizer = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        reconstruction, quantized = tokenizer(images())
    assert reconstruction.dtype == quantized.embeddings.dtype == torch.float32
    assert all(loss.dtype == torch.float32 for loss in quantized.losses.values())


@pytest.mark.parametrize("changes", [{}, {"decoder_attention_pairs": 2, "decoder_extra_blocks": 1}])
def test_every_parameter_gets_a_gradient(changes):
    tokenizer = tiny(**changes)
    # Zero-initialised projections hide the layers before them at the very first step only.
    for module in tokenizer.modules():
        if isinstance(module, BlockAttention):
            nn.init.normal_(module.proj.weight)
    reconstruction, quantized = tokenizer(images())
    loss = (reconstruction - images()).abs().mean() + tokenizer.quantizer.total(quantized.losses)
    loss.backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_phase_2_starts_at_phase_1_and_never_moves_the_code_space():
    first = tiny(seed=3)
    config = ConvTokenizerConfig(
        **{**vars(TINY), "decoder_attention_pairs": 1, "decoder_extra_blocks": 1}
    )
    second = upgrade_decoder(first, config)
    second.freeze_code_space()
    x = images()
    assert second.code_space_hash() == first.code_space_hash()
    with torch.no_grad():
        assert torch.equal(second(x)[0], first(x)[0])
    before = {k: v.clone() for k, v in second.state_dict().items()}
    trainable = [p for p in second.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, 1e-2)
    for _ in range(2):
        reconstruction, quantized = second(x)
        assert quantized.losses == {} and second.quantizer.total({}) == 0
        optimizer.zero_grad()
        (reconstruction - x).abs().mean().backward()
        optimizer.step()
    for name, parameter in second.named_parameters():
        if name.startswith("decoder."):
            assert not torch.equal(parameter, before[name]), name
        else:
            assert parameter.grad is None and torch.equal(parameter, before[name]), name
    assert second.code_space_hash() == first.code_space_hash()
    assert torch.equal(second.encode(x), first.encode(x))


def test_phase_2_refuses_another_code_space():
    first = tiny(decoder_attention_pairs=1)
    for changes in ({"channels": 16}, {"decoder_attention_pairs": 0}, {"attention_heads": 2}):
        config = ConvTokenizerConfig(**{**vars(first.config), **changes})
        with pytest.raises(ValueError, match=next(iter(changes))):
            upgrade_decoder(first, config)
    more_codes = VectorQuantizerConfig(num_codes=33, code_dim=8)
    with pytest.raises(ValueError, match=r"quantizer.num_codes: expected 33, found 32"):
        upgrade_decoder(first, replace(first.config, quantizer=more_codes))
    other_loss = VectorQuantizerConfig(num_codes=32, code_dim=8, entropy_weight=0.5)
    upgrade_decoder(first, replace(first.config, quantizer=other_loss))


def test_code_space_hash_is_of_encoder_codebook_and_preprocessing():
    tokenizer = tiny()
    original = tokenizer.code_space_hash()
    assert original == tiny().code_space_hash() != tiny(seed=1).code_space_hash()
    assert original == tokenizer.to(memory_format=torch.channels_last).code_space_hash()
    assert original != tiny(resolution=32).code_space_hash()
    with torch.no_grad():
        tokenizer.decoder.conv_out.bias[0] = 5
        assert tokenizer.code_space_hash() == original
        tokenizer.quantizer.codebook[3, 2] += 1e-6
        changed = tokenizer.code_space_hash()
        assert changed != original
        tokenizer.encoder.conv_in.weight[0, 0, 0, 0] += 1e-6
    assert tokenizer.code_space_hash() not in (changed, original)


def test_last_layer_makes_the_reconstruction():
    tokenizer = tiny()
    with torch.no_grad():
        tokenizer.last_layer.zero_()
        reconstruction, _ = tokenizer(images())
    bias = tokenizer.decoder.conv_out.bias.reshape(1, 3, 1, 1)
    torch.testing.assert_close(reconstruction, bias.expand_as(reconstruction))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"resolution": 18},
            r"multiple of f = 4 \(two to the number of multipliers ",
        ),
        ({"multipliers": ()}, "multipliers"),
        ({"channels": 10**9}, "channels x multiplier"),
        ({"blocks_per_level": 10**9}, "blocks_per_level"),
        ({"decoder_attention_pairs": 1, "attention_heads": 3}, "attention_heads"),
        ({"quantizer": VectorQuantizerConfig(num_codes=0)}, "num_codes"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match=r"multiples of 4, found \(1, 3, 16, 18\)"):
        tiny().encode(torch.zeros(1, 3, 16, 18))
    with pytest.raises(ValueError, match="expected integer codes"):
        tiny().decode(torch.zeros(1, 4, 4))


def test_saving_and_loading(tmp_path):
    tokenizer = tiny(decoder_attention_pairs=1)
    save_tokenizer(tokenizer, tmp_path, {"recipe": "toy"})
    torch.manual_seed(5)
    expected_draw = torch.rand(1)
    torch.manual_seed(5)
    loaded = load_tokenizer(tmp_path)
    assert torch.equal(torch.rand(1), expected_draw)
    assert loaded.config == tokenizer.config and not loaded.training
    assert loaded.state_dict().keys() == tokenizer.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, tokenizer.state_dict()[name])
    assert tokenizer_extra(tmp_path) == {"recipe": "toy"}
    assert load_tokenizer(tmp_path / "model.safetensors").grid == (4, 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def change_record(folder, **changes):
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**record, **changes}))


def test_files_that_do_not_fit_are_refused(tmp_path):
    weights = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="config.json"):
        load_tokenizer(tmp_path)
    save_tokenizer(tiny(), tmp_path)
    good = weights.read_bytes()
    tensors = load_file(weights)

    save_file({**tensors, "decoder.extra": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match=r"1 unknown \(decoder.extra\)"):
        load_tokenizer(tmp_path)
    save_file({k: v for k, v in tensors.items() if k != "quantizer.codebook"}, weights)
    with pytest.raises(ValueError, match=r"1 missing \(quantizer.codebook\)"):
        load_tokenizer(tmp_path)
    save_file({**tensors, "quantizer.codebook": torch.zeros(3, 8)}, weights)
    with pytest.raises(ValueError, match=r"quantizer.codebook of shape \(32, 8\), found \(3, 8\)"):
        load_tokenizer(tmp_path)
    weights.write_bytes(b"\x80\x04" + good[2:])
    with pytest.raises(ValueError, match="expected a safetensors file"):
        load_tokenizer(tmp_path)
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ValueError, match="sha256"):
        load_tokenizer(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        load_tokenizer(tmp_path)
    weights.write_bytes(good)
    load_tokenizer(tmp_path)


def test_records_that_do_not_fit_are_refused(tmp_path):
    save_tokenizer(tiny(), tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    for changes, message in [
        ({"config": {**record["config"], "chanels": 8}}, "did you mean 'channels'"),
        ({"config": {**record["config"], "channels": 10**9}}, "channels x multiplier"),
        ({"format": "other"}, "expected format"),
        ({"surprise": 1}, "expected keys"),
        ({"code_space_hash": "0" * 64}, "expected code space 0000"),
    ]:
        save_tokenizer(tiny(), tmp_path)
        change_record(tmp_path, **changes)
        with pytest.raises(ValueError, match=message):
            load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        load_tokenizer(tmp_path)
