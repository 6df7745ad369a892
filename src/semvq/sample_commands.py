"""The commands that draw images: `semvq sample` and `semvq edit`."""

import itertools
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semvq.backbones.efficientnet_lite import load_efficientnet_lite0
from semvq.backbones.mobilenet import load_mobilenet_v2
from semvq.command_parts import at_least_one, import_code, quoted, sampling_options, write
from semvq.data.images import DataConfig, image_grid, load_image, save_png, to_float, to_uint8
from semvq.data.npz import save_npz
from semvq.data.shards import is_image
from semvq.edit import box_mask, load_edit, outpaint_mask
from semvq.edit import edit as edit_image
from semvq.generators.base import Generator
from semvq.generators.rejection import (
    Kept,
    candidate_index,
    classifier_confidence,
    keep_best,
    log_likelihood,
)
from semvq.runs import open_generator
from semvq.tokenizer.model import Tokenizer
from semvq.training.journal import say_progress
from semvq.training.lock import make_folder
from semvq.training.runs import resolve_device

MAX_COLUMNS = 16  # of the sheet of samples
MAX_ON_SHEET = 256
TINT = (1.0, -1.0, 1.0)  # magenta, which hardly any photo has
SCORER = "efficientnet-lite0"  # class agreement is judged by MobileNetV2: not the same network
CLASSIFIERS = {SCORER: load_efficientnet_lite0, "mobilenet-v2": load_mobilenet_v2}

Scorer = Callable[[Tensor, Tensor | None], Tensor]  # codes, classes -> (B,)


@torch.no_grad()
def sample(options: Namespace) -> None:
    """`semvq sample`: a folder of PNG files and `grid.png`; with `--npz` one array file as well."""
    import_code(options)
    device = resolve_device(options.device)
    generator, tokenizer, names = open_generator(options.run, options.decoder, device)
    if options.bf16:
        generator.to(torch.bfloat16)
    at_least_one(num=options.num, batch_size=options.batch_size)
    num_classes = generator.config.num_classes
    classes = classes_of(options.label, options.num, names, num_classes)
    chosen = sampling_options(options, generator.sampling_options)
    score = _scorer(options, generator, tokenizer, device)
    side, scores = tokenizer.config.resolution, []
    images = torch.empty(options.num, 3, side, side, dtype=torch.uint8)  # held once
    for start in range(0, options.num, options.batch_size):
        num = min(options.batch_size, options.num - start)
        labels = None if classes is None else classes[start : start + num].to(device)
        kept = _draw(generator, start, num, labels, score, options, chosen)
        scores.append(kept.scores.cpu())
        with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
            images[start : start + num] = to_uint8(tokenizer.decode(kept.samples)).cpu()
        if not start:  # not earlier, for a mistake leaves nothing; not later, for hours of work
            _make_folders(options)
        say_progress("sampling", start + num, options.num)
    if options.keep_best:
        mean = float(torch.cat(scores).mean())
        words = _words(options.scorer or SCORER)
        print(f"kept the best of {options.keep_best} by {words}: mean score {mean:.3f}")
    if options.npz:
        save_npz(images, classes, options.npz)
        print(options.npz)
    in_turn = num_classes if options.label is None else 0
    _write_samples(images, options.out, _columns(options.num, in_turn))


def edit(options: Namespace) -> None:
    """`semvq edit`: results, what they decode to before blending, and `strip.png`."""
    import_code(options)
    device = resolve_device(options.device)
    generator, tokenizer, names = open_generator(options.run, options.decoder, device)
    if "known" not in generator.sampling_options:
        raise ValueError(
            f"{options.run}: expected a NAR run, found an AR one, which cannot keep codes "
            "that come after those it draws; give a NAR run"
        )
    at_least_one(num=options.num, batch_size=options.batch_size)
    classes = classes_or_none(options.label, options.num, names, generator)
    chosen = sampling_options(options, generator.sampling_options)
    image, mask = _image_and_mask(options, tokenizer.config.resolution)
    blended, decoded = [], []
    for start in range(0, options.num, options.batch_size):
        num = min(options.batch_size, options.num - start)
        labels = None if classes is None else classes[start : start + num].to(device)
        found = edit_image(
            generator, tokenizer, image.to(device), mask, num, labels, options.seed,
            first_index=start, **chosen,
        )  # fmt: skip
        blended.append(to_uint8(found.blended).cpu())
        decoded.append(to_uint8(found.decoded).cpu())
        if not start:
            _make_folders(options)
        say_progress("editing", start + num, options.num)
    results, strip = torch.cat(blended), options.out / "strip.png"
    ours = strip.exists()
    _write_numbered(results, options.out, ours)
    _write_numbered(torch.cat(decoded), options.out / "decoded", ours)
    if options.npz:
        save_npz(results, classes, options.npz)
        print(options.npz)
    shown = torch.stack([image, _tinted(image, mask)])
    row = torch.cat([shown, to_float(results[:MAX_ON_SHEET])])
    write(image_grid(row, min(len(row), MAX_COLUMNS)), strip)


def _draw(
    generator: Generator,
    start: int,
    num: int,
    labels: Tensor | None,
    score: Scorer,
    options: Namespace,
    chosen: dict[str, Any],
) -> Kept:
    """Codes of samples start, ..., start + num - 1: the best of their candidates."""

    def draw(candidate: int) -> Tensor:
        index = candidate_index(start, num, candidate)
        return generator.sample(num, labels, options.seed, first_index=index, **chosen)

    return keep_best(draw, lambda codes: score(codes, labels), num, options.keep_best or 1)


def _scorer(
    options: Namespace, generator: Generator, tokenizer: Tokenizer, device: torch.device
) -> Scorer:
    """What candidates are scored by; a lone one by nothing."""
    if options.keep_best is None:
        if options.scorer is not None:
            raise ValueError(
                f"--scorer: expected --keep-best beside it, found '{options.scorer}' alone; "
                "give --keep-best, e.g. 8"
            )
        return lambda codes, classes: torch.zeros(len(codes), device=codes.device)
    at_least_one(keep_best=options.keep_best)
    scorer = options.scorer or SCORER
    if scorer == "likelihood":
        return lambda codes, classes: log_likelihood(generator, codes, classes)
    classifier = CLASSIFIERS[scorer]().to(device)
    return lambda codes, classes: classifier_confidence(classifier, tokenizer.decode(codes))


def _words(scorer: str) -> str:
    return "mean log p of its codes" if scorer == "likelihood" else f"confidence of {scorer}"


def classes_of(
    label: str | None, num: int, names: tuple[str, ...], num_classes: int
) -> Tensor | None:
    """Class numbers of `num` samples; None for an unconditional generator."""
    if not num_classes:
        if label is not None:
            raise ValueError(f"--class: this generator has no classes, found '{label}'")
        return None
    if label is None:
        return torch.arange(num) % num_classes
    if label in names:
        return torch.full((num,), names.index(label))
    if label.isdigit() and int(label) < num_classes:
        return torch.full((num,), int(label))
    raise ValueError(
        f"--class: expected a name among {quoted(names)} or a number below {num_classes}, "
        f"found '{label}'"
    )


def classes_or_none(
    label: str | None, num: int, names: tuple[str, ...], generator: Generator
) -> Tensor | None:
    """As `classes_of`, but without --class none at all, which some generators were not taught."""
    config = generator.config
    if label is None:
        if config.num_classes and not config.conditioning_dropout:
            raise ValueError(
                "--class: expected one, found none, and this generator was trained without "
                f"conditioning_dropout; give a name among {quoted(names)}"
            )
        return None
    return classes_of(label, num, names, config.num_classes)


def _image_and_mask(options: Namespace, resolution: int) -> tuple[Tensor, Tensor]:
    """The image (3, R, R) in [-1, 1] and the mask (R, R), from whichever option gives one."""
    for path in (options.image, options.mask):
        check_file(path)
    if options.mask is not None:
        return load_edit(options.image, options.mask, resolution)
    if options.box is not None:
        mask = box_mask(options.box, resolution)
    else:
        mask = outpaint_mask(options.outpaint, resolution)
    return to_float(load_image(options.image, DataConfig(resolution))), mask


def _tinted(image: Tensor, mask: Tensor) -> Tensor:
    """`image` (3, H, W) in [-1, 1], half tinted where `mask` (H, W) is true: where to repaint."""
    return torch.where(mask, (image + torch.tensor(TINT).view(3, 1, 1)) / 2, image)


def check_file(path: Path | None) -> None:
    """ValueError for a folder where an image file is meant."""
    if path is not None and path.is_dir():
        kinds = [p.suffix for p in sorted(path.iterdir()) if is_image(p.name)]
        raise ValueError(
            f"{path}: expected an image file, found a folder; give files, such as "
            f"{path / '*'}{kinds[0] if kinds else '.jpg'}"
        )


def _make_folders(options: Namespace) -> None:
    for folder in (options.npz.parent if options.npz else options.out, options.out):
        make_folder(folder)


def _columns(num: int, num_classes: int) -> int:
    """A column per class where all come in turn (`num_classes` > 0) and fit the page, else 8."""
    return min(num, num_classes if 0 < num_classes <= MAX_COLUMNS else 8)


def _write_samples(images: Tensor, folder: Path, columns: int) -> None:
    """uint8 images as 000000.png, … and the first of them as `grid.png`."""
    sheet = folder / "grid.png"
    _write_numbered(images, folder, ours=sheet.exists())
    write(image_grid(to_float(images[:MAX_ON_SHEET]), columns), sheet)


def _write_numbered(images: Tensor, folder: Path, ours: bool) -> None:
    """uint8 images as 000000.png, …; where the folder is `ours`, a larger earlier set is removed.

    Else what follows are somebody's own files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = (folder / f"{index:06d}.png" for index in itertools.count())
    for image, path in zip(images, files):  # in this order: no name is taken in vain
        save_png(to_float(image), path)
    if ours:
        for old in itertools.takewhile(Path.exists, files):
            old.unlink()
