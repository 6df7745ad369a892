"""VQGAN's and MoVQ's networks, and several codes per place: sizes, formulas, files, two steps."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semvq.evaluation.prediction import code_size
from semvq.losses.perceptual import NO_PERCEPTUAL
from semvq.recipes.describe import describe
from semvq.rivals.movq import ModulatedNorm, ModulatedNormSiLU, MoVQConfig, modulated
from semvq.rivals.multichannel import MultichannelQuantizer, MultichannelQuantizerConfig
from semvq.rivals.vqgan import VQGANConfig
from semvq.rivals.vqgan_layers import PLAIN, Attention, Block, Doubling, Halving
from semvq.tokenizer.files import load_tokenizer, save_tokenizer
from semvq.tokenizer.model import Tokenizer, TokenizerConfig
from semvq.tokenizer.quantize import VectorQuantizerConfig
from semvq.training.runs import train_recipe
from tests.toy import photos, toy_phase1

TINY = {
    "resolution": 16,
    "channels": 8,
    "multipliers": (1, 1, 2),
    "blocks_per_level": 1,
    "attention_side": 4,
}
VQGAN = VQGANConfig(**TINY, quantizer=VectorQuantizerConfig(num_codes=32, code_dim=8))
MOVQ = MoVQConfig(
    **TINY, quantizer=MultichannelQuantizerConfig(num_codes=32, code_dim=8, channels=2)
)
BOTH = pytest.mark.parametrize("config", [VQGAN, MOVQ], ids=["vqgan", "movq"])


def tiny(config: TokenizerConfig, seed: int = 0) -> Tokenizer:
    torch.manual_seed(seed)
    return config.build()


def images(num: int = 2, size: int = 16, seed: int = 1) -> Tensor:
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


RQ_VAE = VQGANConfig(multipliers=(1, 1, 2, 2, 4, 4), attention_side=8)


@pytest.mark.parametrize(
    ("config", "encoder", "codebook", "decoder"),
    [
        (VQGANConfig(), 29_363_968, 1024 * 256, 42_515_587),
        (MoVQConfig(), 29_363_968, 1024 * 64, 48_831_619),
        (RQ_VAE, 41_167_104, 1024 * 256, 59_040_387),
    ],
    ids=["vqgan", "movq", "rq-vae"],
)
def test_parameter_counts(config, encoder, codebook, decoder):
    """72,141,699 is Table 3's 72.1M of VQGAN; for MoVQ (82.7M there) see its docstring."""
    with torch.device("meta"):
        tokenizer = config.build()
    parts = tokenizer.encoder, tokenizer.quantizer, tokenizer.decoder
    assert tuple(map(num_parameters, parts)) == (encoder, codebook, decoder)
    total = {VQGANConfig(): 72_141_699, MoVQConfig(): 78_261_123}.get(config)
    assert total is None or f"{total:,}" in type(config).__doc__
    assert total in (None, num_parameters(tokenizer))


@pytest.mark.parametrize(
    ("config", "grid"),
    [(VQGANConfig(), (16, 16)), (MoVQConfig(), (64, 16)), (RQ_VAE, (8, 8))],
    ids=["vqgan", "movq", "rq-vae"],
)
def test_layout(config, grid):
    with torch.device("meta"):
        tokenizer = config.build()
    assert tokenizer.grid == grid
    attentions = [n for n, m in tokenizer.named_modules() if isinstance(m, Attention)]
    last = len(config.multipliers) - 1
    assert attentions == [
        *(f"encoder.levels.{last}.layers.{i}" for i in (1, 3)),
        "encoder.middle.layers.1",
        "decoder.middle.layers.1",
        *(f"decoder.levels.0.layers.{i}" for i in (1, 3, 5)),
    ]
    blocks = [m for m in tokenizer.modules() if isinstance(m, Block)]
    assert len(blocks) + len(attentions) == config.num_blocks
    norms = [m for m in tokenizer.modules() if isinstance(m, nn.GroupNorm)]
    assert {(m.num_groups, m.eps, m.affine) for m in norms} == {(32, 1e-6, True)}
    assert all(m.bias is not None for m in tokenizer.modules() if isinstance(m, nn.Conv2d))


@BOTH
@pytest.mark.parametrize(("multipliers", "side"), [((1,), 16), ((1, 2), 8), ((1, 1, 1, 2), 4)])
def test_shapes(config, multipliers, side):
    config = replace(config, multipliers=multipliers, attention_side=side)
    tokenizer = tiny(config).eval()
    x = images()
    codes = tokenizer.encode(x)
    assert codes.shape == (2, *tokenizer.grid) and codes.dtype == torch.int64
    assert tokenizer.grid[1] == 16 // config.factor
    assert tokenizer.grid[0] == tokenizer.grid[1] * tokenizer.quantizer.codes_per_place
    assert tokenizer.decode(codes).shape == x.shape


@BOTH
def test_forward_encode_and_decode_agree(config):
    tokenizer = tiny(config).eval()
    for x in (images(), torch.cat([images(), images(seed=2)], 3)):
        with torch.no_grad():
            reconstruction, quantized = tokenizer(x)
        assert quantized.losses == {} and reconstruction.shape == x.shape
        assert torch.equal(tokenizer.encode(x), quantized.codes)
        assert torch.equal(tokenizer.decode(quantized.codes), reconstruction)


@BOTH
def test_autocast_keeps_the_codes_islands_in_fp32(config):
    tokenizer = tiny(config)
    with torch.autocast("cpu", torch.bfloat16):
        reconstruction, quantized = tokenizer(images())
    assert reconstruction.dtype == quantized.embeddings.dtype == torch.float32
    assert all(loss.dtype == torch.float32 for loss in quantized.losses.values())


@BOTH
def test_every_parameter_gets_a_gradient(config):
    tokenizer = tiny(config)
    reconstruction, quantized = tokenizer(images())
    assert quantized.losses.keys() == {"codebook", "commitment", "entropy"}
    loss = (reconstruction - images()).abs().mean() + tokenizer.quantizer.total(quantized.losses)
    loss.backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@BOTH
def test_last_layer_makes_the_reconstruction(config):
    tokenizer = tiny(config)
    with torch.no_grad():
        tokenizer.last_layer.zero_()
        reconstruction, _ = tokenizer(images())
    bias = tokenizer.decoder.conv_out.bias.reshape(1, 3, 1, 1)
    torch.testing.assert_close(reconstruction, bias.expand_as(reconstruction))


@BOTH
def test_saving_and_loading(config, tmp_path):
    tokenizer = tiny(config).eval()
    save_tokenizer(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.config == config
    assert loaded.code_space_hash() == tokenizer.code_space_hash()
    assert loaded.code_space_hash() != tiny(config, seed=1).code_space_hash()
    with torch.no_grad():
        assert torch.equal(loaded(images())[0], tokenizer(images())[0])


@BOTH
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"resolution": 18},
            r"multiple of f = 4 \(two to the number of multipliers ",
        ),
        ({"multipliers": ()}, "multipliers"),
        ({"multipliers": (1, 0)}, "multipliers"),
        ({"channels": 10**9}, "channels x multiplier"),
        ({"blocks_per_level": 10**9}, "blocks_per_level"),
        ({"attention_side": 5}, r"attention_side .* \[16, 8, 4\], found 5"),
        ({"quantizer": VectorQuantizerConfig(num_codes=0)}, "num_codes"),
    ],
)
def test_impossible_shapes_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **changes).build()


def test_bits_per_pixel_count_all_codes_of_a_place():
    assert code_size(tiny(VQGAN)) == (4, 1) and code_size(tiny(MOVQ)) == (4, 2)


def test_shortcut_reads_the_blocks_input():
    torch.manual_seed(0)
    block, x = Block(8, 16, PLAIN), torch.randn(2, 8, 4, 4)
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    expected = torch.einsum("oi,bihw->bohw", block.shortcut.weight[..., 0, 0], x)
    torch.testing.assert_close(block(x), expected + block.shortcut.bias[:, None, None])
    assert Block(8, 8, PLAIN).shortcut is None


def test_halving_reaches_over_to_the_right_and_below_and_doubling_repeats():
    halving, doubling = Halving(1), Doubling(1)
    for conv in (halving, doubling):
        nn.init.ones_(conv.weight)
        nn.init.zeros_(conv.bias)
    assert halving(torch.ones(1, 1, 4, 4))[0, 0].tolist() == [[9, 6], [6, 4]]
    x = torch.tensor([[1.0, 10.0]]).reshape(1, 1, 1, 2)
    assert doubling(x)[0, 0].tolist() == [[4, 24, 42, 40], [4, 24, 42, 40]]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_attention_is_a_plain_softmax(memory_format):
    torch.manual_seed(0)
    attention = Attention(16, PLAIN).double()
    x = torch.randn(2, 16, 3, 4, dtype=torch.float64).contiguous(memory_format=memory_format)
    norm = attention.norm
    y = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, 1e-6).flatten(2)
    weight, bias = attention.qkv.weight[..., 0, 0], attention.qkv.bias
    q, k, v = (weight @ y + bias[:, None]).chunk(3, 1)  # each (B, C, HW)
    shares = (q.transpose(1, 2) @ k / 16**0.5).softmax(2)
    mixed = (shares @ v.transpose(1, 2)).transpose(1, 2)
    out = attention.proj.weight[..., 0, 0] @ mixed + attention.proj.bias[:, None]
    found = attention(x)
    torch.testing.assert_close(found, x + out.unflatten(2, (3, 4)))
    assert found.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_modulated_norm_resizes_the_embeddings_to_the_nearest(memory_format):
    torch.manual_seed(0)
    x = torch.randn(2, 8, 12, 8).contiguous(memory_format=memory_format)
    z = torch.randn(2, 4, 3, 2).contiguous(memory_format=memory_format)
    for make, after in ((ModulatedNorm, lambda y: y), (ModulatedNormSiLU, F.silu)):
        norm = make(8, 4)
        nn.init.normal_(norm.norm.weight)
        wide = norm.modulation(F.interpolate(z, size=x.shape[-2:], mode="nearest"))
        normal = F.group_norm(x, 2, norm.norm.weight, norm.norm.bias, 1e-6)
        gain, shift = wide.chunk(2, 1)
        torch.testing.assert_close(norm(x, z), after(normal * gain + shift))
    one = torch.ones(2, 8, 3, 2).contiguous(memory_format=memory_format)
    same = modulated(x, one, torch.zeros_like(one))
    assert torch.equal(same, x) and same.is_contiguous(memory_format=memory_format)


def test_every_norm_of_movqs_decoder_is_modulated_and_no_other():
    decoder, encoder = tiny(MOVQ).decoder, tiny(MOVQ).encoder
    found = [m for m in decoder.modules() if isinstance(m, ModulatedNorm)]
    assert len(found) == sum(isinstance(m, nn.GroupNorm) for m in decoder.modules()) > 0
    assert not any(isinstance(m, ModulatedNorm) for m in encoder.modules())


def multichannel(**changes) -> MultichannelQuantizer:
    torch.manual_seed(0)
    config = MultichannelQuantizerConfig(num_codes=16, code_dim=12, channels=3)
    return replace(config, **changes).build()


def test_multichannel_codes_are_a_search_for_each_channel():
    quantizer = multichannel()
    latents = torch.randn(2, 12, 4, 5)
    codes = quantizer.encode(latents)
    assert quantizer.codebook.shape == (16, 4) and codes.shape == (2, 12, 5)
    embeddings = quantizer.lookup(codes)
    for channel, (rows, found) in enumerate(zip(codes.split(4, 1), embeddings.split(4, 1))):
        part = latents[:, 4 * channel : 4 * channel + 4].double().permute(0, 2, 3, 1)
        distance = (part[..., None, :] - quantizer.codebook.double()).square().sum(-1)
        assert torch.equal(rows, distance.argmin(-1))
        assert torch.equal(found.permute(0, 2, 3, 1), quantizer.codebook[rows])
    assert quantizer.code_dim == 12 and quantizer.code_facts()["channels"] == 3
    assert quantizer.code_facts()["code_dim"] == 12


def test_multichannel_losses_and_usage_are_of_the_parts():
    quantizer = multichannel(entropy_temperature=0.5)
    plain = VectorQuantizerConfig(num_codes=16, code_dim=4, entropy_temperature=0.5).build()
    plain.load_state_dict(quantizer.state_dict())
    latents = torch.randn(2, 12, 4, 5)
    parts = torch.cat(latents.split(4, 1), 2)  # one under the other
    found, expected = quantizer(latents), plain(parts)
    assert torch.equal(found.codes, expected.codes)
    assert found.losses.keys() == expected.losses.keys() and quantizer.codes_per_place == 3
    for name, loss in expected.losses.items():
        torch.testing.assert_close(found.losses[name], loss)
    called = []
    quantizer.all_mean = lambda x: called.append(x) or x
    quantizer(latents)
    assert [tuple(t.shape) for t in called] == [(), (16,)]  # spread, then usage
    quantizer.initialize(latents)
    rows = {tuple(r) for r in parts.permute(0, 2, 3, 1).reshape(-1, 4).tolist()}
    assert {tuple(code) for code in quantizer.codebook.tolist()} <= rows


def test_one_channel_is_the_plain_rule():
    latents = torch.randn(2, 12, 4, 5)
    one = multichannel(channels=1)
    plain = VectorQuantizerConfig(num_codes=16, code_dim=12).build()
    plain.load_state_dict(one.state_dict())
    assert torch.equal(one(latents).embeddings, plain(latents).embeddings)


def test_wrong_channels_are_refused():
    for channels in (0, -1, 5, 24):
        with pytest.raises(ValueError, match=f"divide code_dim, found {channels} channels"):
            multichannel(channels=channels)
    with pytest.raises(ValueError, match="num_codes"):
        multichannel(num_codes=0)
    with pytest.raises(ValueError, match="each of 3 channels, found 4"):
        multichannel().lookup(torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="latents of width 12, found 9"):
        multichannel().encode(torch.zeros(1, 9, 4, 4))


@BOTH
def test_two_steps_of_a_recipe(config, tmp_path):
    recipe = toy_phase1(
        duration="2 steps", log_every="1 step", evaluate_every="2 steps", save_every="2 steps"
    )
    task = replace(recipe.task, tokenizer=config, perceptual=NO_PERCEPTUAL)
    data = photos(tmp_path / "photos", per_class=4)
    run = tmp_path / "run"
    assert train_recipe(replace(recipe, task=task), run, data=data) is None
    trained = load_tokenizer(run)
    assert trained.config == config
    assert not torch.equal(trained.last_layer, tiny(config).last_layer)


def test_the_cost_of_decoding_counts_a_place_once():
    """However many codes it has: the decoder's maps are no larger for it."""
    recipe, flop = toy_phase1(), set()
    for channels in (1, 2):
        tokenizer = replace(MOVQ, quantizer=replace(MOVQ.quantizer, channels=channels))
        task = replace(recipe.task, tokenizer=tokenizer, perceptual=NO_PERCEPTUAL, adversarial=None)
        facts = describe(replace(recipe, task=task))
        assert facts["grid"] == f"{4 * channels} x 4 = {16 * channels} codes of 32"
        flop.add(facts["decode_gflop_per_image"])
    assert len(flop) == 1 and flop.pop() > 0
