"""Editing: masks, codes that stay, codes that change, and the seam."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from semvq.data.images import DataConfig, load_image, to_float, to_uint8
from semvq.edit import (
    box_mask,
    edit,
    load_edit,
    masked_cells,
    outpaint_mask,
    soft_mask,
)
from semvq.generators.nar import NARConfig
from semvq.rivals.multichannel import MultichannelQuantizerConfig
from tests.toy import toy_phase1

SIDE = 16


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    tokenizer = toy_phase1().task.tokenizer.build().eval()
    generator = NARConfig(
        num_layers=2, width=16, num_heads=2, num_codes=16, grid_height=4, grid_width=4,
        num_classes=3, conditioning_dropout=0.1,
    ).build().eval()  # fmt: skip
    return generator, tokenizer


def picture(seed: int = 0) -> torch.Tensor:
    pixels = torch.randint(0, 256, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))
    return to_float(pixels.to(torch.uint8))


@pytest.mark.parametrize("order", ["confidence", "halton"])
def test_kept_codes_stay_exactly_and_masked_ones_change(models, order):
    generator, tokenizer = models
    image, mask = picture(), torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[5:9, 6] = True  # rows 1 and 2 of the codes, column 1
    before = tokenizer.encode(image[None])
    found = edit(generator, tokenizer, image, mask, 6, torch.arange(6) % 3, order=order, steps=2)
    cells = masked_cells(mask, (4, 4), 1)
    assert cells.nonzero().tolist() == [[1, 1], [2, 1]]
    assert torch.equal(found.codes[:, ~cells], before[:, ~cells].expand(6, -1))
    assert (found.codes[:, cells] != before[:, cells]).any()
    assert len({tuple(c.tolist()) for c in found.codes[:, cells]}) > 1  # results differ
    assert found.decoded.shape == found.blended.shape == (6, 3, SIDE, SIDE)


def test_all_codes_of_a_masked_place_are_drawn_again_and_no_other():
    torch.manual_seed(0)
    codes = MultichannelQuantizerConfig(num_codes=16, code_dim=8, channels=2)
    tokenizer = replace(toy_phase1().task.tokenizer, quantizer=codes).build().eval()
    generator = NARConfig(
        num_layers=2, width=16, num_heads=2, num_codes=16, grid_height=8, grid_width=4,
    ).build().eval()  # fmt: skip
    image, mask = picture(), torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[5:9, 6] = True  # rows 1 and 2 of either grid, column 1
    before = tokenizer.encode(image[None])
    found = edit(generator, tokenizer, image, mask, 6)
    changed = (found.codes != before).any(0).nonzero().tolist()
    assert changed == [[1, 1], [2, 1], [5, 1], [6, 1]]


def test_the_mask_shows_the_decoding_and_far_pixels_the_original(models):
    generator, tokenizer = models
    image, mask = picture(), box_mask("0.5,0,1,1", SIDE)
    found = edit(generator, tokenizer, image, mask, 2, torch.tensor([0, 1]))
    assert torch.allclose(found.blended[..., 8:], found.decoded[..., 8:], atol=1e-6)
    assert torch.equal(
        to_uint8(found.blended[..., :6]), to_uint8(image[None, :, :, :6].expand(2, -1, -1, -1))
    )
    # f = 4: half a code is two pixels, so the one beside the mask is half of each
    middle = (image[None, :, :, 7] + found.decoded[..., 7]) / 2
    assert torch.allclose(found.blended[..., 7], middle, atol=1e-6)


def test_result_i_does_not_depend_on_their_number(models):
    generator, tokenizer = models
    mask = outpaint_mask("right:0.5", SIDE)
    three = edit(generator, tokenizer, picture(), mask, 3, seed=2)
    last = edit(generator, tokenizer, picture(), mask, 1, seed=2, first_index=2)
    assert torch.equal(three.codes[2:], last.codes)


def test_an_empty_mask_is_refused(models):
    with pytest.raises(ValueError, match="white where to repaint, found none"):
        edit(*models, picture(), torch.zeros(SIDE, SIDE, dtype=torch.bool))


@pytest.mark.parametrize("reach", [1.0, 2.0, 8.0])
def test_the_seam_is_half_a_cosine_of_the_distance(reach):
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[10:14, 20:22] = True
    mask[30, 2] = True
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    inside = mask.nonzero()
    distance = (rows[..., None] - inside[:, 0]) ** 2 + (columns[..., None] - inside[:, 1]) ** 2
    distance = distance.double().sqrt().amin(-1)
    expected = 0.5 * (1 + torch.cos(math.pi * (distance / reach).clamp(max=1)))
    assert torch.allclose(soft_mask(mask, reach).double(), expected, atol=1e-6)


def test_any_pixel_masks_its_code():
    mask = torch.zeros(12, 8, dtype=torch.bool)
    mask[0, 0] = mask[11, 3] = mask[7, 7] = True
    cells = torch.tensor([[True, False], [False, True], [True, False]])
    assert torch.equal(masked_cells(mask, (3, 2), 1), cells)
    assert torch.equal(masked_cells(mask, (9, 2), 3), torch.cat([cells] * 3))  # a grid per code


def test_boxes_and_bands():
    assert box_mask("0.25,0.5,0.75,1", 8).nonzero().tolist() == [
        [r, c] for r in range(4, 8) for c in range(2, 6)
    ]
    assert bool(box_mask("0,0,1,1", 5).all())
    for band, box in (("left:0.25", "0,0,0.25,1"), ("right:0.25", "0.75,0,1,1"),
                      ("top:0.5", "0,0,1,0.5"), ("bottom:0.5", "0,0.5,1,1")):  # fmt: skip
        assert torch.equal(outpaint_mask(band, 16), box_mask(box, 16))
    for wrong in ("", "0,0,1", "0,0,1,x", "0.5,0,0.5,1", "0,0,1,1.1", "-0.1,0,1,1", "0,nan,1,1"):
        with pytest.raises(ValueError, match="--box: expected x0,y0,x1,y1"):
            box_mask(wrong, 16)
    for wrong in ("", "left", "left:", "up:0.5", "left:0", "left:1", "left:nan", "left:0.5:1"):
        with pytest.raises(ValueError, match="--outpaint: expected one of left, right"):
            outpaint_mask(wrong, 16)


def test_image_and_mask_are_cropped_alike(tmp_path):
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[16:32, 48:64] = 255
    Image.fromarray(pixels).save(tmp_path / "both.png")
    image, mask = load_edit(tmp_path / "both.png", tmp_path / "both.png", 16)
    assert mask.dtype == torch.bool and mask.nonzero().tolist() == [
        [r, c] for r in range(4, 8) for c in range(8, 12)
    ]
    assert float(image[:, 5:7, 9:11].min()) == pytest.approx(1, abs=0.02)
    expected = to_float(load_image(tmp_path / "both.png", DataConfig(resolution=16)))
    assert torch.equal(image, expected)


def test_masks_that_do_not_fit_are_refused(tmp_path):
    Image.new("RGB", (20, 24)).save(tmp_path / "a.png")
    Image.new("L", (24, 20)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_text("no image")
    with pytest.raises(ValueError, match=r"b\.png: expected a mask of .* 20x24, found 24x20"):
        load_edit(tmp_path / "a.png", tmp_path / "b.png", 16)
    with pytest.raises(ValueError, match=r"c\.png: expected JPEG"):
        load_edit(tmp_path / "a.png", tmp_path / "c.png", 16)
    with pytest.raises(ValueError, match=r"absent\.png: No such file"):
        load_edit(tmp_path / "absent.png", tmp_path / "a.png", 16)
