"""The rivals' rules for codes, and ViT-VQGAN's networks."""

import copy
import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from semvq.rivals import kmeans
from semvq.rivals.factorized import FactorizedQuantizerConfig
from semvq.rivals.kmeans import KMeansQuantizerConfig, beside_the_fullest
from semvq.rivals.residual import ResidualQuantizerConfig
from semvq.rivals.vit import ViTTokenizerConfig
from semvq.tokenizer.conv import ConvTokenizerConfig
from semvq.tokenizer.files import load_tokenizer, save_tokenizer

RESIDUAL = ResidualQuantizerConfig(num_codes=32, code_dim=8, depth=3)
FACTORIZED = FactorizedQuantizerConfig(num_codes=32, code_dim=8, factor_dim=4)
KMEANS = KMeansQuantizerConfig(
    num_codes=32, code_dim=8, every=3, until=6, kept=256, iterations=5
)  # fmt: skip
CODES = (RESIDUAL, FACTORIZED, KMEANS)
TINY = ConvTokenizerConfig(
    resolution=16, channels=8, multipliers=(1, 1), blocks_per_level=1, middle_blocks=1
)
VIT = ViTTokenizerConfig(
    resolution=16, quantizer=FACTORIZED, patch=4, num_layers=2, width=16, num_heads=2
)  # fmt: skip
TOKENIZERS = [*(replace(TINY, quantizer=codes) for codes in CODES), VIT]
by_name = pytest.mark.parametrize(
    "config", TOKENIZERS, ids=["residual", "factorized", "kmeans", "vit"]
)


def images(num: int = 3, side: int = 16) -> Tensor:
    return torch.rand(num, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def tokenizer(config):
    torch.manual_seed(0)
    made = config.build()
    with torch.no_grad():
        made.quantizer.initialize(made.latents(images(8)))
    return made


@by_name
def test_codes_and_back(config):
    made = tokenizer(config).eval()
    codes = made.encode(images())
    assert codes.shape == (3, *made.grid) and codes.dtype == torch.int64
    assert int(codes.min()) >= 0 and int(codes.max()) < made.num_codes
    reconstruction, quantized = made(images())
    assert torch.equal(quantized.codes, codes) and not quantized.losses
    torch.testing.assert_close(made.decode(codes), reconstruction, rtol=1e-5, atol=1e-6)
    assert reconstruction.shape == (3, 3, 16, 16)


@by_name
def test_every_parameter_learns(config):
    made = tokenizer(config).train()
    reconstruction, quantized = made(images())
    loss = reconstruction.square().mean() + made.quantizer.total(quantized.losses)
    loss.backward()
    without = [n for n, p in made.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@by_name
def test_saved_and_loaded(config, tmp_path):
    made = tokenizer(config).eval()
    save_tokenizer(made, tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.config == config and again.code_space_hash() == made.code_space_hash()
    assert torch.equal(again.encode(images()), made.encode(images()))


@by_name
def test_the_last_layer_makes_the_pixels(config):
    made = tokenizer(config).eval()
    with torch.no_grad():
        made.last_layer.zero_()
    flat = made.decode(made.encode(images()))
    assert torch.equal(flat, flat[:1].expand_as(flat))


def test_residual_codes_are_those_of_a_loop_in_float64():
    quantizer = tokenizer(replace(TINY, quantizer=RESIDUAL)).quantizer
    latents = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(1)) * 0.1
    left = latents.permute(0, 2, 3, 1).reshape(-1, 8).double()
    sizes, grids = [left.norm(dim=1).mean()], []
    for _ in range(3):
        found = torch.cdist(left, quantizer.codebook.double()).argmin(1)
        left = left - quantizer.codebook[found].double()
        grids.append(found.view(2, 4, 4))
        sizes.append(left.norm(dim=1).mean())
    codes = quantizer.encode(latents)
    assert torch.equal(codes, torch.cat(grids, dim=1)) and codes.shape == (2, 12, 4)
    rest = latents - quantizer.lookup(codes)
    torch.testing.assert_close(rest.double().norm(dim=1).mean(), sizes[-1], rtol=1e-5, atol=0)


def test_residual_losses_are_means_over_depths():
    quantizer = tokenizer(replace(TINY, quantizer=RESIDUAL)).quantizer.train()
    latents = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    losses = quantizer(latents).losses
    total, terms = torch.zeros_like(latents), []
    for grid in quantizer.encode(latents).chunk(3, dim=1):
        total = total + quantizer.codebook[grid].permute(0, 3, 1, 2)
        terms.append((latents - total).square().mean())
    # what was left, less the code, is what is left then: both terms have one value
    for name in ("codebook", "commitment"):
        torch.testing.assert_close(losses[name], torch.stack(terms).mean())


def test_later_depths_have_codes_of_their_size():
    made = tokenizer(replace(TINY, quantizer=RESIDUAL))
    with torch.no_grad():
        latents = made.latents(images(8))
    left = []
    for depth in (1, 2, 3):
        made.quantizer.codes_per_place = depth
        with torch.no_grad():
            found = made.quantizer.lookup(made.quantizer.encode(latents))
        left.append(float((latents - found).norm()))
    assert left[0] > left[1] > left[2]


def white(num: int, width: int, seed: int) -> Tensor:
    """Latents (1, width, num, 1) without any structure, the hardest to quantize."""
    return torch.randn(1, width, num, 1, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("num_codes", "width", "depth"), [(256, 64, 4), (256, 256, 8), (8, 4, 3)])
def test_every_depth_takes_energy_away_from_the_first_step_on(num_codes, width, depth):
    torch.manual_seed(0)
    config = ResidualQuantizerConfig(num_codes=num_codes, code_dim=width, depth=depth)
    quantizer = config.build().requires_grad_(False)
    quantizer.initialize(white(8 * num_codes, width, seed=1))
    for seed in (1, 2):  # what it was made of, and what it never saw
        left, energies = white(8 * num_codes, width, seed), [1.0]
        whole = left.square().sum()
        for grid in quantizer.encode(left).chunk(depth, dim=1):
            left = left - quantizer.codebook[grid].permute(0, 3, 1, 2)
            energies.append(float(left.square().sum() / whole))
        assert all(b < a for a, b in zip(energies, energies[1:])), energies


def test_few_codes_or_few_latents_make_a_residual_codebook_too():
    for num_codes, latents in ((2, 100), (32, 5), (3, 2)):
        quantizer = replace(RESIDUAL, num_codes=num_codes, depth=4).build()
        quantizer.initialize(white(latents, 8, seed=1))
        assert quantizer.codebook.isfinite().all()
        apart = quantizer.codebook[quantizer.codebook.any(1)]  # parts share 0 if nothing is left
        assert len(apart) >= num_codes - 3 and len(apart.unique(dim=0)) == len(apart)


def test_residual_codes_of_another_number_of_rows_are_refused():
    quantizer = RESIDUAL.build()
    for rows in (1, 4, 8):
        with pytest.raises(ValueError, match=f"rows of codes for each of 3 depths, found {rows}"):
            quantizer.lookup(torch.zeros(1, rows, 4, dtype=torch.int64))


def test_factorized_codes_are_the_nearest_angles():
    quantizer = tokenizer(replace(TINY, quantizer=FACTORIZED)).quantizer
    latents = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        down = quantizer.down(latents).permute(0, 2, 3, 1).double()
        cosines = F.normalize(down, dim=-1) @ F.normalize(quantizer.codebook.double(), dim=1).t()
        assert torch.equal(quantizer.encode(latents), cosines.argmax(-1))
        quantizer.down.bias.zero_()
        assert torch.equal(quantizer.encode(latents), quantizer.encode(7 * latents))
        quantizer.codebook.mul_(3)  # the length of a code is nothing
    assert torch.equal(quantizer.encode(latents), quantizer.encode(2 * latents))


def test_factorized_losses_are_means_over_elements_as_the_plain_ones():
    quantizer = tokenizer(replace(TINY, quantizer=FACTORIZED)).quantizer.train()
    latents = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    found = quantizer(latents)
    units = F.normalize(quantizer.down(latents), dim=1).permute(0, 2, 3, 1)
    cosines = (units * F.normalize(quantizer.codebook, dim=1)[found.codes]).sum(-1)
    for name in ("codebook", "commitment"):
        torch.testing.assert_close(found.losses[name], (2 - 2 * cosines).mean() / 4)


def mixture(num: int) -> Tensor:
    """Latents (1, 8, num, 1) around 32 places."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(32, 8, generator=generator) * 4
    which = torch.randint(32, (num,), generator=generator)
    rows = places[which] + 0.05 * torch.randn(num, 8, generator=generator)
    return rows.t().reshape(1, 8, num, 1)


def test_an_estimate_brings_a_collapsed_codebook_to_life():
    quantizer = replace(KMEANS, iterations=40).build()
    with torch.no_grad():
        quantizer.codebook.copy_(torch.randn(32, 8) * 0.01 + 4)
    latents = mixture(256)
    quantizer._take(latents.permute(0, 2, 3, 1).flatten(0, 2))

    def error() -> float:
        found = quantizer.lookup(quantizer.encode(latents)).detach()
        return float((latents - found).square().mean())

    used, before = len(quantizer.encode(latents).unique()), error()
    quantizer.estimate()
    assert used < 16 and len(quantizer.encode(latents).unique()) > 28
    assert error() < before / 20


def test_no_iteration_makes_the_error_larger():
    quantizer = replace(KMEANS, iterations=1).build()
    latents = mixture(200)
    quantizer._take(latents.permute(0, 2, 3, 1).flatten(0, 2))
    errors = []
    for _ in range(12):
        quantizer.estimate()
        found = quantizer.lookup(quantizer.encode(latents)).detach()
        errors.append(float((latents - found).square().mean()))
    assert all(b <= a * (1 + 1e-6) for a, b in zip(errors, errors[1:]))


def test_empty_clusters_go_beside_the_fullest_and_apart():
    centres, counts = torch.arange(15.0).view(5, 3), torch.tensor([3.0, 0, 9, 0, 0])
    moved = beside_the_fullest(centres, counts, torch.ones(3))
    assert torch.equal(moved[[0, 2]], centres[[0, 2]])
    assert (moved[1] - centres[2]).abs().max() <= 0.0101  # the fullest first, then the next
    assert (moved[3] - centres[0]).abs().max() <= 0.0101
    assert len(moved.unique(dim=0)) == 5


def test_kmeans_is_due_when_it_says_and_keeps_the_latest():
    quantizer = KMEANS.build().train()
    due = []
    quantizer.estimate = lambda: due.append(int(quantizer.counts[0]))
    for step in range(9):
        quantizer(torch.full((1, 8, 10, 10), float(step)))
    assert due == [3, 6] and int(quantizer.counts[0]) == 6  # no note of anything after `until`
    assert quantizer.rows[:, 0].unique().tolist() == [3.0, 4.0, 5.0]
    evaluated = copy.deepcopy(quantizer).eval()
    evaluated(torch.zeros(1, 8, 2, 2))
    assert torch.equal(evaluated.counts, quantizer.counts)
    assert not any("rows" in name for name in quantizer.state_dict())


def rows_of(latents: Tensor) -> Tensor:
    return latents.permute(0, 2, 3, 1).flatten(0, 2)


def test_rows_that_are_not_finite_have_no_part_in_an_estimate():
    rows = rows_of(mixture(200))
    spoilt = rows.repeat_interleave(2, dim=0)[:256]
    spoilt[1::2, 3] = torch.tensor([torch.nan, torch.inf]).repeat(64)
    books = []
    for taken in (rows[:128], spoilt):
        torch.manual_seed(0)
        quantizer = KMEANS.build()
        quantizer._take(taken)
        quantizer.estimate()
        books.append(quantizer.codebook.detach())
    assert torch.equal(*books) and books[0].isfinite().all()

    quantizer._take(torch.full((256, 8), torch.nan))
    quantizer.estimate()
    assert torch.equal(quantizer.codebook, books[1]), "nothing to go by: as it was"


def test_sums_of_members_in_chunks_are_those_of_the_whole(monkeypatch):
    rows = rows_of(mixture(200))
    codes = torch.randint(32, (200,), generator=torch.Generator().manual_seed(3))
    members = F.one_hot(codes, 40).double()
    for chunk in (kmeans._CHUNK, 40 * 7, 1):
        monkeypatch.setattr(kmeans, "_CHUNK", chunk)
        sums, counts = kmeans.sums_of_members(rows, codes, 40)
        torch.testing.assert_close(sums.double(), members.t() @ rows.double(), atol=1e-4, rtol=1e-5)
        assert torch.equal(counts.double(), members.sum(0))


def test_an_estimate_under_autocast_is_one_of_fp32():
    books = []
    for enabled in (False, True):
        torch.manual_seed(0)
        quantizer = replace(KMEANS, every=1).build().train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            quantizer(mixture(200))
        books.append(quantizer.codebook.detach())
    assert torch.equal(*books)


def test_two_processes_estimate_as_one_with_the_rows_of_both():
    """Threads in their place, which meet at every mean."""
    barrier, slots = threading.Barrier(2, timeout=60), [torch.empty(0)] * 2
    parts = rows_of(mixture(256)).split([160, 96])
    books: list[Tensor] = [torch.empty(0)] * 2

    def made(*taken: Tensor):
        quantizer = KMEANS.build()
        quantizer.load_state_dict(start)
        for rows in taken:
            quantizer._take(rows)
        return quantizer

    def process(rank: int) -> None:
        def mean(x: Tensor) -> Tensor:
            slots[rank] = x
            barrier.wait()
            found = (slots[0] + slots[1]) / 2
            barrier.wait()
            return found

        quantizer = made(parts[rank])
        quantizer.all_mean = mean
        quantizer.estimate()
        books[rank] = quantizer.codebook.detach()

    torch.manual_seed(0)
    start = KMEANS.build().state_dict()
    alone = made(*parts)
    alone.estimate()
    threads = [threading.Thread(target=process, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(*books)
    torch.testing.assert_close(books[0], alone.codebook.detach(), atol=1e-4, rtol=1e-4)


def test_counting_never_waits_for_the_device_and_sees_what_a_resume_wrote():
    away = KMEANS.build().to("meta")
    away._known = [0, 0]
    away._take(torch.empty(5, 8, device="meta"))  # a tensor there has no value to ask for
    assert away._known == [1, 5] and away.counts.device == away.rows.device

    quantizer = KMEANS.build().train()
    quantizer(mixture(10))
    assert quantizer.counts.tolist() == [1, 10]
    for name, tensor in quantizer.state().items():
        tensor.copy_(torch.tensor([4, 100]) if name == "kmeans_counts" else tensor + 1)
    quantizer(mixture(10))
    assert quantizer.counts.tolist() == [5, 110]


def test_parts_of_a_step_are_one_step():
    quantizer, due = KMEANS.build().train(), []
    quantizer.estimate = lambda: due.append(quantizer.counts.tolist())
    for _ in range(7):
        for _ in range(3):
            quantizer.total(quantizer(mixture(10)).losses).backward()
        quantizer.zero_grad(set_to_none=True)
    assert due == [[3, 70], [6, 160]] and quantizer.counts.tolist() == [6, 160]
    with pytest.raises(ValueError, match="learns between estimates, found codebook_weight and"):
        replace(KMEANS, codebook_weight=0.0).build()


def test_vit_sizes_and_refusals():
    with torch.device("meta"):
        small = ViTTokenizerConfig().build()
    sizes = [sum(p.numel() for p in part.parameters()) for part in (small.encoder, small.decoder)]
    assert sizes == [27_418_368, 27_320_000]
    made = tokenizer(VIT)
    with pytest.raises(ValueError, match="expected 4 x 4 patches.*found 8 x 8"):
        made.encode(images(1, 32))
    with pytest.raises(ValueError, match=r"multiple of f = 4 \(the side of a patch\), found 18"):
        replace(VIT, resolution=18).build()
    with pytest.raises(ValueError, match="width that num_heads divides, found 16 and 3"):
        replace(VIT, num_heads=3).build()
    with pytest.raises(ValueError, match="depth of at least 1, found 0"):
        replace(RESIDUAL, depth=0).build()
    with pytest.raises(ValueError, match="factor_dim of at least 1, found 0"):
        replace(FACTORIZED, factor_dim=0).build()
    with pytest.raises(ValueError, match="every of at least 1, found 0"):
        replace(KMEANS, every=0).build()


def test_patches_come_back_where_they_were():
    made = VIT.build()
    with torch.no_grad():  # a decoder that says which patch it is at
        first = made.decoder(torch.zeros(1, 8, 4, 4))
        made.decoder.trunk.positions[5] += 100.0
        changed = (made.decoder(torch.zeros(1, 8, 4, 4)) - first).abs().amax((0, 1))
    # attention spreads it a little everywhere; the patch of row 1, column 1 moves most
    patches = changed.view(4, 4, 4, 4).permute(0, 2, 1, 3).flatten(2).mean(-1)
    assert int(patches.argmax()) == 5
