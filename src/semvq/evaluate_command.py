"""The command `semvq evaluate`: one protocol on one run, its figures and all they depend on."""

import json
import re
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from semvq import assets
from semvq.command_parts import at_least_one, check_classes, import_code, sampling_options
from semvq.data.images import ImageSet
from semvq.evaluation.feature_sets import FeatureSet
from semvq.evaluation.features import load_network
from semvq.evaluation.generation import SPLITS, classes_like, count_codes, generation
from semvq.evaluation.prediction import likelihood, probe
from semvq.evaluation.reconstruction import distance_facts, reconstruction
from semvq.evaluation.reference import open_images, open_reference
from semvq.evaluation.sources import (
    ArrayImages,
    FileImages,
    SampledImages,
    SampleFiles,
    SavedImages,
    Source,
    UnigramImages,
)
from semvq.evaluation.streaming import Setting
from semvq.evaluation.subsets import CODED_IMAGES, SomeImages
from semvq.evaluation.versions import versions
from semvq.evaluation.warnings import few_images, no_score
from semvq.files import CONFIG, WEIGHTS, family_of, read_json, sha256_of, write_atomically
from semvq.generators.base import Generator
from semvq.runs import open_generator, open_tokenizer
from semvq.tokenizer.model import Tokenizer
from semvq.training.distributed import World, join
from semvq.training.journal import say_progress
from semvq.training.runs import resolve_device

MAX_CODED = 20_000  # training images whose codes are counted: enough for one distribution
DIGITS = 6  # significant ones, of printed figures
Facts = dict[str, Any]


def evaluate(options: Namespace) -> None:
    """`semvq evaluate`: prints figures and facts, and writes them with `--json`."""
    record = measure(options)
    if record is None:
        return
    _print(record)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.json, json.dumps(record, indent=1) + "\n")


def measure(options: Namespace) -> dict[str, Any] | None:
    """Figures, facts and warnings of a protocol; None at processes that only help."""
    import_code(options)
    at_least_one(num=options.num, batch_size=options.batch_size)
    _check_options(options)
    device, world = join(resolve_device(options.device))
    net = None
    if options.protocol != "likelihood":  # which takes no features
        net = load_network(options.network, device, options.weights)
    setting = Setting(net, world, options.batch_size, options.fast, say_progress)
    protocols = {
        "reconstruction": _reconstruction,
        "generation": _generation,
        "likelihood": _likelihood,
        "probe": _probe,
    }
    figures, facts = protocols[options.protocol](options, setting, device)
    if not world.is_writer:
        return None
    if options.fast and net:
        figures["fast_feature_difference"] = setting.differences[0]
    if net and any(name.endswith("score") for name in figures):
        facts["score"] = net.score
    return {
        "protocol": options.protocol,
        "run": str(options.run),
        "figures": figures,
        "facts": facts | {"fast": options.fast} | versions(device),
        "warnings": _warnings(figures, options.protocol, setting),
    }


def _check_options(options: Namespace) -> None:
    """ValueError for what would be passed over in silence, or make a control of nothing."""
    if options.protocol != "generation":
        for name in ("statistics", "val", "save_images"):
            if getattr(options, name) is not None:
                raise ValueError(
                    f"--{name.replace('_', '-')}: expected --protocol generation, which alone uses "
                    f"it, found {options.protocol}; leave it out"
                )
    same = options.val and options.data and options.val.resolve() == options.data.resolve()
    if same:
        raise ValueError(
            f"{options.val}: expected other photos as --val than as --data, found the same; the "
            "control on real photos says nothing then"
        )


def _reconstruction(
    options: Namespace, setting: Setting, device: torch.device
) -> tuple[dict[str, float], Facts]:
    tokenizer, facts = _tokenizer_of(options, device)
    source = _held_out(options, tokenizer)
    figures = dict(reconstruction(tokenizer, source, setting))
    return figures, facts | _seen(setting, "images", source) | distance_facts()


def _likelihood(
    options: Namespace, setting: Setting, device: torch.device
) -> tuple[dict[str, float], Facts]:
    generator, tokenizer, source, facts = _generator_and_images(options, device)
    figures = dict(likelihood(generator, tokenizer, source, setting))
    return figures, facts | _seen(setting, "images", source) | distance_facts()


def _probe(
    options: Namespace, setting: Setting, device: torch.device
) -> tuple[dict[str, float], Facts]:
    generator, tokenizer, source, facts = _generator_and_images(options, device)
    figures = dict(probe(generator, tokenizer, source, setting))
    return figures, facts | _seen(setting, "images", source) | distance_facts()


def _seen(setting: Setting, name: str, source: Source) -> Facts:
    """What the figures of a source depend on; what the source is stands under `name`."""
    facts = setting.feature_facts(source.side, source.facts())
    return {name: facts.pop("source"), **facts}


def _generation(
    options: Namespace, setting: Setting, device: torch.device
) -> tuple[dict[str, float], Facts]:
    if _is_run(options.run):
        generator, tokenizer, names = open_generator(options.run, options.decoder, device)
        side, num_classes = tokenizer.config.resolution, generator.config.num_classes
        data = open_images(options.data, side, options.pixel_range, options.workers)
        if isinstance(data, FileImages):
            check_classes(data.image_set, names, num_classes)
        reference = open_reference(data, options.data, options.statistics, setting, side)
        counts = _class_counts(reference, num_classes, setting.world, device)
        labels = classes_like(counts, options.num, num_classes)
        chosen = sampling_options(options, generator.sampling_options)
        samples: Source = SampledImages(generator, tokenizer, labels, options.seed, chosen)
        balance = "as in the data" if counts is not None else "equal"
        facts = _run_facts(options.run, tokenizer) | {"classes": balance if num_classes else "none"}
    else:
        tokenizer, samples = None, _sample_files(options)
        side = samples.side
        data = open_images(options.data, side, options.pixel_range, options.workers)
        reference = open_reference(data, options.data, options.statistics, setting, side)
        labels, facts = torch.zeros(samples.num, dtype=torch.int64), {}
    controls: dict[str, Source] = {}
    if tokenizer is not None and data is not None:
        coded = SomeImages(data, MAX_CODED, CODED_IMAGES)
        counts = count_codes(tokenizer, coded, setting)
        controls["unigram"] = UnigramImages(tokenizer, counts, tokenizer.grid, labels, options.seed)
        facts["unigram of"] = coded.facts()
    if options.val is not None:
        # as many as the samples: distances compare at equal counts alone
        photos = ImageSet.open(options.val).spread(samples.num)
        controls["real"] = FileImages(photos, side, options.workers)
    facts["controls"] = list(controls) or "none: give --data images, and --val for held-out ones"
    facts |= _seen(setting, "samples", samples) | {"reference": reference and reference.facts}
    if options.save_images:
        samples = SavedImages(samples, options.save_images)
    return dict(generation(samples, reference, setting, controls)), facts


def _class_counts(
    reference: FeatureSet | None, num_classes: int, world: World, device: torch.device
) -> torch.Tensor | None:
    """Training images per class (num_classes,), at every process; None where they are not known.

    `reference` is None at processes that only help. ValueError for classes beyond `num_classes`.
    """
    counts = torch.zeros(num_classes, dtype=torch.int64)
    if reference is not None and reference.class_counts is not None and num_classes:
        if (found := len(reference.class_counts)) > num_classes:
            raise ValueError(
                f"expected training images of the run's {num_classes} classes, found {found}"
            )
        counts = F.pad(reference.class_counts, (0, num_classes - found))
    shared = counts.to(device)
    world.copy_from_writer([shared])
    return shared.cpu() if shared.any() else None


def _sample_files(options: Namespace) -> Source:
    if (options.run / "recipe.json").is_file():
        raise ValueError(
            f"{options.run}: expected a finished run, or samples, found a run that has saved no "
            "model yet"
        )
    if options.run.suffix == ".npz":
        return ArrayImages(options.run, options.pixel_range)
    return SampleFiles(options.run, options.workers)


def _is_run(path: Path) -> bool:
    return (path / CONFIG).is_file()


def _held_out(options: Namespace, tokenizer: Tokenizer) -> FileImages:
    if options.data is None:
        raise ValueError("expected --data with held-out images, found none")
    image_set = ImageSet.open(options.data)
    return FileImages(image_set, tokenizer.config.resolution, options.workers)


def _tokenizer_of(options: Namespace, device: torch.device) -> tuple[Tokenizer, Facts]:
    """The tokenizer of a run: its own, or the one that draws a generator's codes."""
    run = options.run
    if _is_run(run) and family_of(read_json(run / CONFIG)) == "generator":
        _, tokenizer, _ = open_generator(run, options.decoder, device)
    else:
        tokenizer = open_tokenizer(run, device)
    return tokenizer, _run_facts(run, tokenizer)


def _generator_and_images(
    options: Namespace, device: torch.device
) -> tuple[Generator, Tokenizer, FileImages, Facts]:
    generator, tokenizer, names = open_generator(options.run, options.decoder, device)
    source = _held_out(options, tokenizer)
    check_classes(source.image_set, names, generator.config.num_classes)
    return generator, tokenizer, source, _run_facts(options.run, tokenizer)


def _run_facts(run: Path, tokenizer: Tokenizer) -> Facts:
    return {
        "model": sha256_of(run / WEIGHTS),
        "tokenizer": assets.weights_hash(tokenizer),  # of a generator's run, with its decoder
        "code space": tokenizer.code_space_hash(),
    }


def _warnings(figures: dict[str, float], protocol: str, setting: Setting) -> list[str]:
    """What a reader of the figures has to know."""
    found = [f"could not be read and was left out: {line}" for line in setting.bad]
    counts = {name: int(n) for name, n in figures.items() if re.search(r"(^|_)num_", name)}
    if setting.net is None:
        return found
    distances = [name for name in figures if "fid" in name]
    found.append(few_images(distances, counts, setting.net.width))
    if protocol == "generation" and setting.net.logits is not None:
        judged = {name: n for name, n in counts.items() if name.endswith("num_images")}
        lacking = {
            k: n for k, n in judged.items() if k.replace("num_images", "score") not in figures
        }
        found.append(no_score(lacking, SPLITS))
    return [line for line in found if line]


def _print(record: dict[str, Any]) -> None:
    table = Table("figure", record["protocol"], box=None)
    for name, value in record["figures"].items():
        table.add_row(name, f"{value:.{DIGITS}g}")
    console = Console()
    console.print(table)
    facts = record["facts"]
    if "network" in facts:
        words = f"{facts['network']} ({facts['weights'][:16]}), {facts['resize']}"
        console.print(f"features: {words}", soft_wrap=True)
    for line in record["warnings"]:
        print(f"warning: {line}", file=sys.stderr)
