"""Models by name from the Hugging Face hub, and to it; the only file that speaks to the hub.

Thin over `huggingface_hub` (the extra `hub`): its mixin for models would have every network inherit
from it, and would write a configuration of its own beside ours, without hashes.
"""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from semvq.files import one_line
from semvq.generators import files as generator_files
from semvq.generators.base import Generator
from semvq.interop.shared_files import MANIFEST, NAMES, PICTURE, README, check_manifest
from semvq.tokenizer import files as tokenizer_files
from semvq.tokenizer.model import Tokenizer

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*)/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", re.ASCII)


def load_tokenizer(run: Path | str) -> Tokenizer:
    """The tokenizer of a run folder or of a name on the hub, on the CPU, in evaluation mode.

    A name is text, "org/name" or "org/name@revision", where no such folder is here, nor one called
    `org`; a `Path` is never one. It is fetched once and kept in the hub's cache, and its files are
    held against the sha256 in its manifest. Raises FileNotFoundError where a file is missing,
    ValueError for files that are damaged or no tokenizer's, OSError where the hub cannot be read.
    """
    return tokenizer_files.load_tokenizer(found(run))


def load_generator(run: Path | str) -> Generator:
    """The generator of a run folder or of a name on the hub; see `load_tokenizer`."""
    return generator_files.load_generator(found(run))


def found(run: Path | str) -> Path:
    """The folder of a run: where `run` is one of these, or a download; its manifest is checked.

    Errors as for `load_tokenizer`.
    """
    if isinstance(run, str) and is_name(run):
        return download(run)
    folder = Path(run)
    if (folder / MANIFEST).is_file():
        check_manifest(folder)
    return folder


def is_name(text: str) -> bool:
    """Whether this is "org/name[@revision]" and no path of this machine."""
    match = _NAME.fullmatch(text)
    return match is not None and not Path(text).exists() and not Path(match[1]).exists()


def download(name: str) -> Path:
    """The folder with the files of "org/name[@revision]", fetched if it is not in the hub's cache.

    Only the files of a model are fetched, no code. Errors as for `load_tokenizer`.
    """
    _check_name(name)
    hub, (repository, _, revision) = _package(name), name.partition("@")
    patterns = [*NAMES, MANIFEST]
    try:
        path = hub.snapshot_download(repository, revision=revision or None, allow_patterns=patterns)
    except Exception as error:  # of many kinds, by its version
        raise OSError(
            f"{name}: expected a folder, or a model on the hub that can be read, found "
            f"{one_line(error)}"
        ) from error
    check_manifest(Path(path))
    return Path(path)


def push_to_hub(source: Path | str, name: str, *, private: bool = True, **card: Any) -> str:
    """Upload to "org/name", made if absent, private unless you say otherwise; the page's address.

    `source` is a folder that `semvq export --to hub` wrote, or a run, of which one is made with
    `card`: the options of `write_hub_folder`. You have to be logged in (`hf auth login`).
    ValueError for files that are not those of the manifest, OSError where the hub refuses.
    """
    _check_name(name, revision=False)
    hub, source = _package(name), Path(source)
    with TemporaryDirectory() as temporary:
        folder = source
        if not (source / MANIFEST).is_file():
            from semvq.interop.hub_folder import write_hub_folder  # inside: loading needs no images

            folder = Path(temporary) / "folder"
            write_hub_folder(source, folder, **card)
        elif card:
            raise ValueError(
                f"{source}: expected a run, of which a folder is made with {', '.join(card)}, "
                "found a folder that is made already; leave them out"
            )
        names = [*check_manifest(folder), MANIFEST, README, PICTURE]
        try:
            address = hub.create_repo(name, private=private, exist_ok=True)
            hub.upload_folder(
                repo_id=name,
                folder_path=folder,
                allow_patterns=names,
                commit_message="Upload by semvq",
            )
        except Exception as error:  # of many kinds, by its version
            raise OSError(
                f"{name}: expected a place on the hub that you may write to, found "
                f"{one_line(error)}"
            ) from error
    return str(address)


def _check_name(name: str, *, revision: bool = True) -> None:
    match = _NAME.fullmatch(name)
    if not match or (match[2] and not revision):
        form = "org/name or org/name@revision" if revision else "org/name"
        raise ValueError(f"expected a name on the hub, {form}, found '{name}'")


def _package(name: str) -> Any:
    """huggingface_hub, imported where it is wanted."""
    try:
        import huggingface_hub
    except ImportError:
        raise FileNotFoundError(
            f"{name}: expected a folder, found none; as a name on the hub it needs "
            "huggingface_hub: pip install 'semvq[hub]'"
        ) from None
    return huggingface_hub
