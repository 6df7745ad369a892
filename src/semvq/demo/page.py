"""The demo's report: pictures first, then curves, then the table of figures."""

from pathlib import Path
from typing import Any

from torch import Tensor

from semvq.probe.report import Picture, Section, curves, png_bytes, write_report
from semvq.training.journal import read_log

LEAD = (
    "Everything on this page was trained and measured by one run of semvq demo on a small set "
    "of fruit photos. The models are tiny: read it as a working miniature, not as a benchmark."
)
WIDTH = 1000
WORDS = {
    "psnr": "PSNR, dB",
    "chroma_r2": "R² of chroma (1 keeps all colour)",
    "lpips": "LPIPS (VGG16, v0.1; lower is closer)",
    "ar_cross_entropy": "AR cross-entropy",
    "ar_top1_accuracy": "AR top-1 accuracy",
    "fruit_phase1": "phase 1",
    "fruit_phase2": "phase 2",
    "fruit_phase2_control": "control",
    "changed_by_phase2": "codes changed by phase 2",
    "same_code_space_hash": "phase 2 has phase 1's code-space hash",
    "num_held_out": "held-out photos",
    "attention_verdict": "attention",
    "shortened": "note",
}


def write_page(out: Path, metrics: dict[str, Any], pictures: dict[str, Tensor]) -> None:
    """Write `out/report.html`, and every picture of it as a PNG in `out/pictures`."""
    folder = out / "pictures"
    folder.mkdir(exist_ok=True)
    for name, image in pictures.items():
        (folder / f"{name}.png").write_bytes(png_bytes(image))
    sections = [
        _reconstructions(pictures),
        _predictions(metrics, pictures),
        _samples(metrics["classes"], pictures),
        _curves(out, metrics),
        _table(metrics),
    ]
    lead = f"{metrics['shortened']} {LEAD}" if "shortened" in metrics else LEAD
    write_report(out / "report.html", "SeQ-GAN on fruit photos", lead, sections)


def _picture(image: Tensor, caption: str) -> Picture:
    return Picture(image, caption, width=WIDTH)


def _reconstructions(pictures: dict[str, Tensor]) -> Section:
    return Section(
        "Held-out photos through the tokenizer and back",
        "Phase 1 learns the codes with a loss that looks at semantics; phase 2 freezes the codes "
        "and trains a stronger decoder for details.",
        [
            _picture(
                pictures["reconstruction"],
                "Rows: original, phase 1, phase 2, and the control: as phase 2, without attention.",
            )
        ],
    )


def _predictions(metrics: dict[str, Any], pictures: dict[str, Tensor]) -> Section:
    figures = metrics["prediction"]
    return Section(
        "What the AR transformer predicts, given the true context",
        "Teacher forcing (Sec. 3.2 of the paper): every code is predicted from the true codes "
        f"before it. Top-1 accuracy {figures['ar_top1_accuracy']:.3f}, cross-entropy "
        f"{figures['ar_cross_entropy']:.2f} nats per code; ignoring context, "
        f"{figures['unigram_entropy']:.2f} is the best possible.",
        [
            _picture(
                pictures["probe"],
                "Columns: held-out photo, reconstruction, prediction, where the top-1 code was "
                "right (white), cross-entropy per position (bright is surprising).",
            )
        ],
    )


def _samples(classes: list[str], pictures: dict[str, Tensor]) -> Section:
    captions = {
        "ar": "AR transformer.",
        "nar": "NAR transformer (MaskGIT), 12 steps.",
        "class_unigram": "Control: every code drawn alone from its class's codes. At best the "
        "right colours, no shapes.",
        "unigram": "Control: every code drawn alone from all training codes.",
    }
    shown = [_picture(pictures[f"samples_{name}"], text) for name, text in captions.items()]
    return Section(
        "New images, and controls that know nothing of context",
        f"One column per class, from left to right: {', '.join(classes)}.",
        shown,
    )


def _curves(out: Path, metrics: dict[str, Any]) -> Section:
    figures = metrics["prediction"]
    quality = {
        name: _series(out / f"fruit_{name}", "val/psnr")
        for name in ("phase1", "phase2", "phase2_control")
    }
    losses = {name: _series(out / f"fruit_{name}", "val/cross_entropy") for name in ("ar", "nar")}
    levels = {
        "unigram": figures["unigram_entropy"],
        "class unigram": figures["class_unigram_entropy"],
    }
    return Section(
        "Curves",
        "",
        [
            Picture(curves(quality, "images seen", "held-out PSNR, dB"), "Tokenizer."),
            Picture(
                curves(losses, "images seen", "held-out cross-entropy, nats", levels),
                "Transformers. The NAR figure is over masked codes only, so the two are not "
                "comparable with each other.",
            ),
        ],
    )


def _series(run: Path, name: str) -> tuple[list[float], list[float]]:
    lines = [x for x in read_log(run) if name in x]
    return [x["images_seen"] for x in lines], [x[name] for x in lines]


def _table(metrics: dict[str, Any]) -> Section:
    rows: list[tuple[str, str, object]] = []
    for group, values in metrics.items():
        if not isinstance(values, (dict, list)):
            rows.append(("the run", _words(group), values))
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, dict):
                part = f"{_words(group)}, {_words(name)}"
                rows += [(part, _words(k), v) for k, v in value.items()]
            else:
                rows.append((_words(group), _words(name), value))
    return Section("Figures", "", rows=rows, header=("part", "figure", "value"))


def _words(key: str) -> str:
    """A key of metrics.json as a person would write it."""
    text = WORDS.get(key, key.removeprefix("fruit_").replace("_", " "))
    words = (w.upper() if w in ("ar", "nar") else w for w in text.split(" "))
    return " ".join(words)
