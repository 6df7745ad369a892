"""The table of a comparison: its rows with what has to be known to read each of them.

Beside the FIDs of samples stand two controls: codes drawn alone from their unigram distribution,
which a model has to beat, and held-out photos, which none can be asked to beat.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from semvq.evaluation.rows import Rows, figures
from semvq.evaluation.side_by_side import KINDS, PHOTOS, UNIGRAM, SideBySide, Training
from semvq.evaluation.streaming import Setting
from semvq.evaluation.warnings import few_images
from semvq.probe.comparison import Figure
from semvq.probe.separability import BATCH, SMALL_IMAGES

CONTROLS = {
    UNIGRAM: "control: each code drawn alone from the unigram distribution, as many samples; a "
    "transformer has to beat it",
    PHOTOS: "control: held-out photos against the training images; no model can be asked to beat "
    "it",
}
SMALL = "small transformer"
BASELINES = {
    "LPIPS": "lpips", "reconstruction, low layers": "low",
    "reconstruction, semantic layers": "semantic", "prediction LPIPS": "lpips",
    "prediction, low layers": "low", "prediction, semantic layers": "semantic",
}  # fmt: skip
READING = (
    "How to read it. The AR cross-entropy and, with --train, the n-gram gain and the small "
    "transformer say cheaply how predictable the codes are; with --train the FID of samples, "
    "between two controls, decides how well one generates, and where they disagree, believe it. "
    "Read a cross-entropy only beside the quality of reconstruction: a tokenizer that lost the "
    "content has the easiest codes. FIDs of no more images than features are biased, and rank only "
    "at equal counts. ± covers the choice of images, and no training seed."
)


def table(
    names: Sequence[str],
    rows: Sequence[Rows],
    said: Mapping[str, str],
    apart: Mapping[str, float],
    num_training: int,
    num_photos: str = "",
) -> list[Figure]:
    """All figures, in order; `said` of a row stands under its name.

    `apart` are mean distances between two different photos, `num_training` the images that the
    small transformer saw, `num_photos` words for how many photos the control is of.
    """
    found = figures(rows)
    for control, note in CONTROLS.items():
        values = [one.get(control) for one in rows]
        if any(values):
            note += f" ({num_photos})" if control == PHOTOS and num_photos else ""
            found.append(Figure(control, values, note=note))
    shown = []
    for row in found:
        if row.name == SMALL:
            row = replace(row, note=_small(names, rows, num_training))
        baseline = apart.get(BASELINES.get(row.name, ""))
        between = "" if baseline is None else f"two different photos: {baseline:.3f}"
        note = "; ".join(filter(None, (row.note, between, said.get(row.name))))
        shown.append(replace(row, note=note, baseline=baseline))
    return shown


def _small(names: Sequence[str], rows: Sequence[Rows], num_training: int) -> str:
    """How long it was trained, and where that was too short to tell anything."""
    steps = -(-SMALL_IMAGES // BATCH)
    note = f"2 layers; {steps} steps of {BATCH} images, drawn from {num_training} training images"
    behind = [
        name
        for name, one in zip(names, rows)
        if {SMALL, "n-gram"} <= set(one) and one[SMALL].value > one["n-gram"].value
    ]
    if behind:
        note += f"; above the n-gram ({', '.join(behind)}): under-trained on so few codes"
    return note


def warnings(found: SideBySide, setting: Setting, training: Training | None) -> dict[str, str]:
    """What has to be said of a row, by its name: which distances are of too few images."""
    assert setting.net is not None
    compared = [(["rFID", "prediction FID"], {"photos": len(found.photos)})]
    if training is not None:
        num_real = training.features.gaussian.num
        sides = {"samples": training.num_samples, "training images": num_real}
        compared.append(([f"{kind} FID" for kind in KINDS], sides))
    present = {row for rows in found.rows for row in rows}
    said: dict[str, str] = {}
    for names, images in compared:
        distances = [name for name in names if name in present]
        if sentence := few_images(distances, images, setting.net.width):
            said |= dict.fromkeys(distances, sentence)
    return said
