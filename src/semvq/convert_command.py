"""The command `semvq convert`: other people's tokenizer, or transformer, becomes a run of ours."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from semvq.command_parts import at_least_one
from semvq.files import reading
from semvq.generators.files import save_generator
from semvq.interop import diffusers, llamagen, maskgit, taming, taming_transformer
from semvq.interop.converted import Converted
from semvq.interop.opening import LeftOut
from semvq.interop.shared_files import all_or_nothing, check_new
from semvq.runs import open_tokenizer
from semvq.tokenizer.files import save_tokenizer

TRANSFORMER = "taming-transformer"
BY_SHAPES = {"taming": taming.convert, "llamagen": llamagen.convert, "maskgit": maskgit.convert}
OF_TRANSFORMERS = ("tokenizer", "heads", "classes")  # options, all needed there and only there
MAX_NAMED = 3


def convert(options: Namespace) -> None:
    """`semvq convert`: writes a run folder that holds the model and where it is from."""
    _check_options(options)
    if options.source == TRANSFORMER:
        _transformer(options)
    else:
        _tokenizer(options)


def _check_options(options: Namespace) -> None:
    """ValueError for what would be passed over in silence, or is needed and not there."""
    at_least_one(resolution=options.resolution)
    _check_source(options.file, takes_folder=options.source == "diffusers")
    transformer = options.source == TRANSFORMER
    for name in OF_TRANSFORMERS:
        if (getattr(options, name) is not None) != transformer:
            raise ValueError(
                f"--{name}: expected with --from {TRANSFORMER}, and with it alone, found --from "
                f"{options.source}; {'give it' if transformer else 'leave it out'}"
            )
    if options.config is not None and options.source != "diffusers":
        raise ValueError(
            f"--config: expected --from diffusers, which alone needs one, found {options.source}, "
            "whose tensors tell its sizes; leave it out, and give --resolution if it is not 256"
        )
    check_new(options.out)


def _check_source(path: Path, takes_folder: bool) -> None:
    """Before any other file is looked for: ValueError where there is nothing to convert."""
    if not (path.is_file() or (takes_folder and path.is_dir())):
        wanted = "a file with weights" + (" or its folder" if takes_folder else "")
        found = "a folder" if path.is_dir() else "nothing there"
        raise ValueError(
            f"{path}: expected {wanted}, found {found}; give what you got from where it was "
            "published"
        )


def _tokenizer(options: Namespace) -> None:
    with reading(options.file):
        if options.source == "diffusers":
            found: Converted = diffusers.convert(options.file, options.resolution, options.config)
        else:
            found = BY_SHAPES[options.source](options.file, options.resolution)
    tokenizer = found.tokenizer
    origin = _origin(options, found.sha256, found.left_out, found.file) | {
        "config_sha256": found.config_sha256,
        "pixel_range": found.pixel_range,
    }
    with all_or_nothing(options.out) as folder:
        save_tokenizer(tokenizer, folder, {"classes": [], "converted": origin})
    height, width = tokenizer.grid
    words = f"{tokenizer.num_codes:,} codes, {height} x {width} for {options.resolution} px"
    _say(options, found.left_out, tokenizer, f"{words}, code space", tokenizer.code_space_hash())


def _transformer(options: Namespace) -> None:
    at_least_one(heads=options.heads)
    tokenizer = open_tokenizer(options.tokenizer, torch.device("cpu"))
    with reading(options.file):
        found = taming_transformer.convert(
            options.file, tokenizer, options.tokenizer, options.heads, options.classes
        )
    space = tokenizer.code_space_hash()
    extra = {
        "code_space_hash": space,
        "classes": [str(n) for n in range(options.classes)],
        "converted": _origin(options, found.sha256, found.left_out),
    }
    with all_or_nothing(options.out) as folder:
        save_generator(found.generator, folder, extra)
    _say(options, found.left_out, found.generator, "on the codes of", space)
    print(f"give it its tokenizer: semvq sample {options.out} --decoder {options.tokenizer}")


def _origin(
    options: Namespace, sha256: str, left_out: LeftOut, file: str | None = None
) -> dict[str, Any]:
    """Where a run is from, for its `config.json`."""
    return {
        "from": options.source,
        "file": file or options.file.name,
        "sha256": sha256,
        "left_out": left_out.names,
        "asked_to_run": left_out.asked_to_run,
    }


def _say(
    options: Namespace, left_out: LeftOut, model: torch.nn.Module, words: str, space: str
) -> None:
    if asked := left_out.asked_to_run:
        rest = "it was not run" if len(asked) == 1 else "none of it was run"
        print(f"warning: the file asked to run {_named(asked)}; {rest}", file=sys.stderr)
    if others := [name for name in left_out.names if name not in asked]:
        print(f"read in a child process, without its objects of {_named(others)}", file=sys.stderr)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{options.out}: {size:.2f}M parameters, {words} {space[:16]}")


def _named(names: list[str]) -> str:
    rest = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
