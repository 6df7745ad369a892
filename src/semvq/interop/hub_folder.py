"""The folder that goes to a hub: weights, configuration, recipe, manifest, a page, a picture.

It is a run folder too, for `load_tokenizer` and `load_generator`. Nothing here needs the network.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from semvq.data.images import image_grid, save_png
from semvq.files import (
    CONFIG,
    WEIGHTS,
    family_of,
    read_json,
    reading,
    sha256_of,
    write_atomically,
    writing,
)
from semvq.generators.base import Generator
from semvq.generators.files import load_generator
from semvq.interop.card import Model, card, read_figures
from semvq.interop.packaged import NUM_PHOTOS, packaged_photos
from semvq.interop.shared_files import (
    PICTURE,
    README,
    RECIPE,
    all_or_nothing,
    check_new,
    write_manifest,
)
from semvq.tokenizer.files import load_tokenizer
from semvq.tokenizer.model import Tokenizer

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def write_hub_folder(
    run: Path,
    out: Path,
    *,
    metrics: Sequence[Path] = (),
    licence: str | None = None,
    decoder: Path | None = None,
) -> None:
    """Write what is published of a run into `out`, a new folder.

    `metrics` are files of `semvq evaluate --json` of this very run. `licence` is the hub's word for
    it ("apache-2.0"); None means that the page says there is none. `decoder`, of a generator, is
    the tokenizer run that draws its samples; None means a page without a picture. ValueError for
    figures of other weights, a decoder of other codes, or a folder that holds files;
    FileNotFoundError where there is no run.
    """
    check_new(out)
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise ValueError(
            f"expected a licence as the hub calls them, such as apache-2.0, mit or other, found "
            f"'{licence}'"
        )
    network, picture = _open(run, decoder)
    weights = sha256_of(run / WEIGHTS)
    figures = [read_figures(path, weights) for path in metrics]
    model = Model(network, licence, weights, has_picture=picture is not None)
    page = card(run, model, figures)
    with all_or_nothing(out) as made:
        with writing(out):
            for name in (WEIGHTS, CONFIG, RECIPE):
                if (run / name).is_file():
                    shutil.copyfile(run / name, made / name)
            if picture is not None:
                save_png(picture, made / PICTURE)
        write_atomically(made / README, page)
        write_manifest(made)


def _open(run: Path, decoder: Path | None) -> tuple[Tokenizer | Generator, Tensor | None]:
    """The network of a run, whole and checked, and its picture (3, H, W) in [-1, 1], if any."""
    if not (run / CONFIG).is_file():
        load_tokenizer(run)  # says what is there instead
    with reading(run):
        family = family_of(read_json(run / CONFIG))
    if family != "generator":
        if decoder is not None:
            raise ValueError(f"{decoder}: expected no decoder of a tokenizer, which has its own")
        tokenizer = load_tokenizer(run)
        return tokenizer, _reconstructions(tokenizer)
    generator = load_generator(run)
    return generator, None if decoder is None else _samples(generator, decoder)


@torch.no_grad()
def _reconstructions(tokenizer: Tokenizer) -> Tensor:
    """Packaged photos above their reconstructions."""
    photos = packaged_photos(tokenizer.config.resolution)
    return image_grid(torch.cat([photos, tokenizer(photos)[0]]), columns=len(photos))


@torch.no_grad()
def _samples(generator: Generator, decoder: Path) -> Tensor:
    """Samples 0, 1, … of seed 0, in a row, classes in turn."""
    tokenizer, facts = load_tokenizer(decoder), generator.extra
    expected, found = str(facts.get("code_space_hash")), tokenizer.code_space_hash()
    if expected != found:
        raise ValueError(
            f"{decoder}: expected the code space {expected[:16]} of the generator, found "
            f"{found[:16]}; give a decoder of that code space"
        )
    count = generator.config.num_classes
    classes = torch.arange(NUM_PHOTOS) % count if count else None
    codes = generator.sample(NUM_PHOTOS, classes, seed=0)
    return image_grid(tokenizer.decode(codes), columns=NUM_PHOTOS)
