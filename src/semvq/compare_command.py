"""The command `semvq compare`: tokenizers side by side on one page."""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from semvq.assets import weights_hash
from semvq.command_parts import at_least_one, check_classes, import_code
from semvq.compare_table import READING, table, warnings
from semvq.data.images import ImageSet, to_float
from semvq.evaluation.features import load_network
from semvq.evaluation.generation import measure
from semvq.evaluation.photos import between_photos, images_at
from semvq.evaluation.rows import scatters
from semvq.evaluation.side_by_side import Entrant, Training, compare_all
from semvq.evaluation.sources import FileImages
from semvq.evaluation.streaming import Setting
from semvq.evaluation.versions import versions
from semvq.files import CONFIG, family_of, read_json, write_atomically
from semvq.generators.base import Generator
from semvq.generators.files import load_generator
from semvq.probe.comparison import Comparison
from semvq.probe.comparison_page import write_comparison
from semvq.runs import open_tokenizer
from semvq.tokenizer.model import Tokenizer
from semvq.training.journal import say_progress
from semvq.training.lock import make_folder
from semvq.training.runs import find_upstream, made_of, read_recipe, resolve_device

LEAD = (
    "Better reconstruction need not mean better generation: what counts is what a transformer can "
    "make of the codes. Every tokenizer sees the same photos, given as held-out."
)


def compare(options: Namespace) -> None:
    """`semvq compare`: write the page and, with `--json`, its figures."""
    import_code(options)
    at_least_one(num=options.num, photos=options.photos)
    for file in filter(None, (options.out, options.json)):
        make_folder(file.parent)  # now, and not after all the work
    device = resolve_device(options.device)
    entrants = open_entrants(options.runs, device)
    _check_sampling(entrants, options)
    side = _one_resolution(entrants)
    held_out = ImageSet.open(options.data)
    _check_all_classes(entrants, held_out)
    setting = Setting(load_network(options.network, device), progress=say_progress)
    source = FileImages(held_out, side, options.workers)
    training = _training(options, setting, side, held_out.classes)
    for entrant in entrants:
        print(f"{entrant.name}: {entrant.subtitle}")
    found = compare_all(entrants, source, options.photos, setting, training)
    names = [entrant.name for entrant in entrants]
    apart = between_photos(source, found.photos, device)
    facts = _facts(setting, source, training, apart, device)
    said = warnings(found, setting, training)
    leaked = [name for run in options.runs if (name := _trained_on(run, held_out))]
    seen = f"these photos are training images of {', '.join(leaked)}" if leaked else ""
    comparison = Comparison(
        title="Tokenizers side by side",
        lead=f"{LEAD} Warning: {seen}." if seen else LEAD,
        photos=to_float(images_at(source, found.shown)),
        labels=[held_out.name(number) for number in found.shown.tolist()],
        compared=found.pictures,
        figures=table(
            names,
            found.rows,
            said,
            apart,
            training.source.num if training else 0,
            f"{min(len(found.photos), options.num)} photos, {options.num} samples",
        ),
        reading=READING,
        scatters=scatters(names, found.rows),
        facts=list(facts.items()),
    )
    write_comparison(options.out, comparison)
    print(options.out)
    sentences = [seen] * bool(seen) + list(dict.fromkeys(said.values()))
    for sentence in sentences:
        print(f"warning: {sentence}", file=sys.stderr)
    if options.json:
        values = [{row: value._asdict() for row, value in one.items()} for one in found.rows]
        record = {
            "figures": dict(zip(names, values)),
            "tokenizers": {entrant.name: weights_hash(entrant.tokenizer) for entrant in entrants},
            "facts": facts,
            "warnings": sentences,
        }
        write_atomically(options.json, json.dumps(record, indent=1) + "\n")


def open_entrants(runs: Sequence[Path], device: torch.device) -> list[Entrant]:
    """Tokenizers among the runs, each with the generators of its code space.

    A generator none of whose tokenizers is given brings the one it was trained on. ValueError for
    two generators of a kind in one code space.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise ValueError(f"expected different runs, found one twice: {', '.join(map(str, runs))}")
    tokenizers = {run: _with_codes(run, device) for run in runs if not _is_generator(run)}
    generators = {run: load_generator(run).to(device) for run in runs if _is_generator(run)}
    spaces = {run: t.code_space_hash() for run, t in tokenizers.items()}
    for run, generator in generators.items():
        if generator.extra["code_space_hash"] not in spaces.values():
            upstream = find_upstream(read_recipe(run), run, None, flag="another RUN")
            assert upstream is not None, "a generator recipe names its upstream"
            tokenizers[upstream] = open_tokenizer(upstream, device)
            spaces[upstream] = tokenizers[upstream].code_space_hash()
    names = _short_names(list(tokenizers))
    return [
        _entrant(names[run], run, tokenizer, spaces[run], generators)
        for run, tokenizer in tokenizers.items()
    ]


def _with_codes(run: Path, device: torch.device) -> Tokenizer:
    """The run's tokenizer; ValueError for an autoencoder, which has no codes to compare."""
    tokenizer = open_tokenizer(run, device)
    if not tokenizer.quantizer.has_codes:
        raise ValueError(
            f"{run}: expected a tokenizer, found an autoencoder without codes; leave it out"
        )
    return tokenizer


def _trained_on(run: Path, photos: ImageSet) -> str:
    """The run's name if its record says it was trained on these photos; "" where none is known."""
    known = made_of(run)
    if not {"data", "held-out data"} <= known.keys():
        return ""
    (value, words), (held_out, _) = known["data"], known["held-out data"]
    if photos.fingerprint == held_out:
        return ""
    same = value == photos.fingerprint or words.endswith(f" of {photos.root.absolute()}")
    return str(run) if same else ""


def _is_generator(run: Path) -> bool:
    path = run / CONFIG
    return path.is_file() and family_of(read_json(path)) == "generator"


def _entrant(
    name: str, run: Path, tokenizer: Tokenizer, space: str, generators: dict[Path, Generator]
) -> Entrant:
    own: dict[str, tuple[Path, Generator]] = {}
    for path, generator in generators.items():
        if generator.extra["code_space_hash"] == space:
            kind = "AR" if generator.causal else "NAR"
            if kind in own:
                raise ValueError(
                    f"expected one {kind} run for the codes of {run}, found {own[kind][0]} and "
                    f"{path}; leave one out"
                )
            own[kind] = (path, generator)
    size = sum(p.numel() for p in tokenizer.parameters()) / 1e6
    words = [f"{size:.2f}M parameters", f"{tokenizer.num_codes:,} codes"]
    words += [f"{kind} {path}" for kind, (path, _) in own.items()]
    return Entrant(name, " · ".join(words), tokenizer, {k: g for k, (_, g) in own.items()})


def _short_names(runs: list[Path]) -> dict[Path, str]:
    """The fewest last parts of each path by which all of them differ."""
    parts = [run.absolute().parts for run in runs]
    names: list[str] = []
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return dict(zip(runs, names))


def _check_sampling(entrants: list[Entrant], options: Namespace) -> None:
    """ValueError for an option of the samples that a generator would refuse after an hour."""
    if options.top_k is not None:
        at_least_one(top_k=options.top_k)
    if options.guidance in (None, 1.0):
        return
    for entrant in entrants:
        for kind, generator in entrant.generators.items():
            if not generator.config.conditioning_dropout:
                raise ValueError(
                    f"--guidance: expected generators that were trained with classes and "
                    f"conditioning_dropout above 0, found the {kind} run on {entrant.name} "
                    "without; leave out the option or the run"
                )


def _one_resolution(entrants: list[Entrant]) -> int:
    sides = {e.tokenizer.config.resolution: e.name for e in entrants}
    if len(sides) > 1:
        found = ", ".join(f"{name} {side} px" for side, name in sides.items())
        raise ValueError(f"expected tokenizers of one resolution, found {found}")
    return next(iter(sides))


def _check_all_classes(entrants: list[Entrant], images: ImageSet) -> None:
    for entrant in entrants:
        for generator in entrant.generators.values():
            check_classes(images, generator.extra["classes"], generator.config.num_classes)


def _training(
    options: Namespace, setting: Setting, side: int, classes: tuple[str, ...]
) -> Training | None:
    """Training images and their features; None where none are given."""
    if options.train is None:
        return None
    if options.train.suffix == ".npz":
        raise ValueError(
            f"{options.train}: expected training images as --train (a folder or shards: their "
            "codes are needed, not statistics alone), found an .npz file; give the images"
        )
    source = FileImages(ImageSet.open(options.train, classes), side, options.workers)
    measured = measure(source, setting, "measuring the training images", len(classes))
    assert measured is not None, "a comparison runs in one process"
    sampling = {"guidance": options.guidance, "top_k": options.top_k}
    chosen = {name: value for name, value in sampling.items() if value is not None}
    both = {"AR": chosen, "NAR": chosen}
    return Training(source, measured, options.num, options.seed, both)


def _facts(
    setting: Setting,
    source: FileImages,
    training: Training | None,
    apart: Mapping[str, float],
    device: torch.device,
) -> dict[str, str]:
    assert setting.net is not None
    facts = {f"features: {k}": v for k, v in setting.net.facts().items()}
    facts |= {f"photos: {k}": str(v) for k, v in source.facts().items()}
    if training is not None:
        facts |= {f"training images: {k}": str(v) for k, v in training.source.facts().items()}
        facts |= {"samples per transformer": str(training.num_samples), "seed": str(training.seed)}
        chosen = ", ".join(f"{k} {v}" for k, v in training.sampling["AR"].items())
        facts["sampling"] = chosen or "defaults"
    for name, value in apart.items():
        facts[f"between two different photos: {name}"] = f"{value:.3f}"
    facts["intervals"] = "bootstrap over images; none of them covers another training seed"
    if setting.bad:
        facts["left out"] = "; ".join(setting.bad)
    return facts | {k: str(v) for k, v in versions(device).items()}
