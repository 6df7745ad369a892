"""The command `semvq export`: a run in a form that others can use."""

from argparse import Namespace
from pathlib import Path

from semvq.command_parts import flag, import_code
from semvq.interop.hub_folder import write_hub_folder
from semvq.interop.onnx_graphs import Agreement, export_onnx
from semvq.interop.shared_files import check_new
from semvq.runs import open_tokenizer
from semvq.training.runs import resolve_device


def export(options: Namespace) -> None:
    """`semvq export`: writes a new folder, and says what is in it."""
    import_code(options)
    check_new(options.out)
    if options.to == "hub":
        write_hub_folder(
            options.run,
            options.out,
            metrics=options.metrics,
            licence=options.licence,
            decoder=options.decoder,
        )
        print(f"{options.out}: {', '.join(_names(options.out))}")
        return
    for name in ("metrics", "licence", "decoder"):
        if getattr(options, name):
            raise ValueError(
                f"{flag(name)}: expected --to hub, which alone uses it, found onnx; leave it out"
            )
    tokenizer = open_tokenizer(options.run, resolve_device("cpu"))
    print(_words(options.out, export_onnx(tokenizer, options.out)))


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _words(folder: Path, found: Agreement) -> str:
    return (
        f"{folder}: {', '.join(_names(folder))}; on packaged photos {found.ties} of {found.codes} "
        f"codes differ from torch's, at near ties, and pixels by at most {found.pixels:.1e}"
    )
