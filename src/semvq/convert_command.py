"""The command `semvq convert`: other people's tokenizer becomes a run of ours."""

import sys
from argparse import Namespace

from semvq.command_parts import at_least_one
from semvq.files import reading
from semvq.interop import diffusers, llamagen, maskgit, taming
from semvq.interop.converted import Converted
from semvq.tokenizer.files import save_tokenizer
from semvq.training.lock import make_folder

BY_SHAPES = {"taming": taming.convert, "llamagen": llamagen.convert, "maskgit": maskgit.convert}
MAX_NAMED = 3


def convert(options: Namespace) -> None:
    """`semvq convert`: writes a run folder that holds the tokenizer and where it is from."""
    at_least_one(resolution=options.resolution)
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise ValueError(
            f"{options.out}: expected a new folder, found one with files; give another --out"
        )
    with reading(options.file):
        found = _convert(options)
    tokenizer = found.tokenizer
    make_folder(options.out)
    save_tokenizer(tokenizer, options.out, {"classes": [], "converted": _origin(options, found)})
    _say(options, found)


def _convert(options: Namespace) -> Converted:
    if options.source == "diffusers":
        return diffusers.convert(options.file, options.resolution, options.config)
    if options.config is not None:
        raise ValueError(
            f"--config: expected --from diffusers, which alone needs one, found {options.source}, "
            "whose tensors tell its sizes; leave it out, and give --resolution if it is not 256"
        )
    return BY_SHAPES[options.source](options.file, options.resolution)


def _origin(options: Namespace, found: Converted) -> dict[str, object]:
    """Where a run is from, for its `config.json`."""
    return {
        "from": options.source,
        "file": options.file.name,
        "sha256": found.sha256,
        "config_sha256": found.config_sha256,
        "pixel_range": found.pixel_range,
        "left_out": found.left_out,
    }


def _say(options: Namespace, found: Converted) -> None:
    tokenizer = found.tokenizer
    if found.left_out:
        more = (
            f" and {len(found.left_out) - MAX_NAMED} more"
            if len(found.left_out) > MAX_NAMED
            else ""
        )
        named = ", ".join(found.left_out[:MAX_NAMED]) + more
        print(f"read in a child process, objects left out: {named}", file=sys.stderr)
    height, width = tokenizer.grid
    size = sum(p.numel() for p in tokenizer.parameters()) / 1e6
    print(
        f"{options.out}: {size:.2f}M parameters, {tokenizer.num_codes:,} codes, {height} x {width} "
        f"for {options.resolution} px, code space {tokenizer.code_space_hash()[:16]}"
    )
