"""Which recipe makes which cell of the paper's tables and figures, beside the figure it printed.

`cells("6", "mini")` gives Table 6 with the recipes of the scale `mini`; `semvq table` trains and
measures them. Cells of other people's models that are quoted alone (Tables 3 and 4) are left out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Literal, NamedTuple

from semvq.recipes.named import RECIPES
from semvq.recipes.rivals import rival_recipe, rivals
from semvq.recipes.scales import Scale, mini, mini_photos, paper, paper_whole, recipes, tiny
from semvq.training.recipe import Recipe

Metric = Literal["rFID", "usage", "FID", "IS"]
GENERATED: tuple[Metric, ...] = ("FID", "IS")  # of samples, not of reconstructions
SCALES = ("tiny", "mini", "paper")


class Cell(NamedTuple):
    """One number: the `metric` of `run`, drawn by `decoder` (None: by the run itself).

    `published` is what the paper printed; None where it printed nothing, or in a figure alone.
    `dataset` is the family of the recipe, whose images it needs.
    """

    row: str
    column: str
    metric: Metric
    run: str
    published: float | None
    decoder: str | None
    dataset: str


TITLES = {
    "1": "Table 1: stronger decoders, trained together with the encoder",
    "2": "Table 2: reconstruction",
    "3": "Table 3: unconditional generation",
    "4": "Table 4: class-conditional generation",
    "5": "Table 5: codebook regularisation",
    "6": "Table 6: the layers of the perceptual loss",
    "fig6": "Fig. 6: the semantic ratio alpha",
    "fig8": "Fig. 8: the second phase",
}

# rFID, then FID of AR, AR-L, AR-L-2x, NAR
TABLE_1 = {
    "low": ("baselineVQ", 3.45, 16.97, 13.86, 11.49, 13.26),
    "conv2": ("+Conv x2", 3.22, 17.19, 14.50, 12.03, 13.51),
    "attention2": ("+Attention x2", 2.90, 17.42, 14.91, 12.04, 14.02),
}
# usage, rFID, then FID of AR and NAR
TABLE_5 = {
    "no_entropy": ("VQGAN", 0.435, 4.07, 17.19, 14.58),
    "factorized": ("+F&N", 0.997, 2.93, 24.91, None),
    "kmeans": ("+K-means", 1.0, 3.54, 16.84, 15.02),
    "low": ("+H(D)", 1.0, 3.45, 16.97, 13.26),
}
# rFID, then FID of AR and NAR
TABLE_6 = {
    "low": ("L_low", 3.45, 16.97, 13.26),
    "a": ("A", 3.01, 15.19, 11.78),
    "b": ("B", 2.93, 14.47, 11.58),
    "c": ("C", 2.81, 14.08, 10.52),
    "d": ("D", 2.62, 13.34, 9.56),
    "sem": ("L_sem", 2.77, 12.07, 8.84),
    "e": ("E", 4.65, 17.88, 14.00),
}
ONE_PHASE = "sem_attention"  # the variant
ALPHAS = {"low": 0.0, "alpha20": 0.2, "alpha40": 0.4, "alpha60": 0.6, "alpha80": 0.8, "sem": 1.0}
# the data sets of the whole method; what was printed of them stands beside their recipes
DATASETS = ("imagenet256", "ffhq256", "lsun_church256", "lsun_cat256", "lsun_bedroom256")


def cells(table: str, scale: str) -> list[Cell]:
    """All cells of a table, in its order; ValueError for an unknown table or scale."""
    if table not in TITLES:
        raise ValueError(f"expected a table among {', '.join(TITLES)}, found {table}")
    if scale not in SCALES:
        raise ValueError(f"expected a scale among {', '.join(SCALES)}, found {scale}")
    ablations = {"1": _table1, "5": _table5, "6": _table6, "fig6": _fig6}
    if table in ablations:
        return list(ablations[table](_scale(scale)))
    whole = {"2": _table2, "3": _table3, "4": _table4, "fig8": _fig8}
    return list(whole[table](scale))


@cache
def table_recipes() -> Mapping[str, Recipe]:
    """The recipes that cells name beside those of the paper's own paths, by name."""
    found = [r for scale in (paper(), mini(), mini_photos(), tiny()) for r in recipes(scale)]
    for dataset in ("imagenet256", "ffhq256", "mini64", "mini128", "tiny48"):
        found += [rival_recipe(dataset, rival) for rival in rivals(dataset)]
    whole = paper_whole()
    found += [whole.tokenizer(ONE_PHASE), *(whole.transformer(ONE_PHASE, k) for k in whole.kinds)]
    return {recipe.name: recipe for recipe in found}


@cache
def _published() -> Mapping[tuple[str, str], float]:
    """What stands beside the named recipes, by recipe and metric."""
    return {(r.name, p.metric): p.value for r in (make() for make in RECIPES) for p in r.published}


def _scale(name: str) -> Scale:
    makers: dict[str, Callable[[], Scale]] = {"paper": paper, "mini": mini, "tiny": tiny}
    return makers[name]()


def _measured(scale: Scale, variant: str, row: str, rfid: float | None) -> Cell:
    return Cell(row, "rFID", "rFID", f"{scale.prefix}_{variant}", rfid, None, scale.prefix)


def _generated(
    scale: Scale, variant: str, row: str, fids: Iterable[tuple[str, float | None]]
) -> Iterator[Cell]:
    for kind, fid in fids:
        column = kind.upper().replace("_", "-")
        run = f"{scale.prefix}_{variant}_{kind}"
        yield Cell(row, column, "FID", run, fid, None, scale.prefix)


def _table1(scale: Scale) -> Iterator[Cell]:
    for variant, (row, rfid, *fids) in TABLE_1.items():
        yield _measured(scale, variant, row, rfid)
        yield from _generated(scale, variant, row, zip(("ar", "ar_l", "ar_l_2x", "nar"), fids))


def _table5(scale: Scale) -> Iterator[Cell]:
    for variant, (row, usage, rfid, *fids) in TABLE_5.items():
        run = f"{scale.prefix}_{variant}"
        yield Cell(row, "usage", "usage", run, usage, None, scale.prefix)
        yield _measured(scale, variant, row, rfid)
        yield from _generated(scale, variant, row, zip(("ar", "nar"), fids))


def _table6(scale: Scale) -> Iterator[Cell]:
    for variant, (row, rfid, *fids) in TABLE_6.items():
        yield _measured(scale, variant, row, rfid)
        yield from _generated(scale, variant, row, zip(("ar", "nar"), fids))


def _fig6(scale: Scale) -> Iterator[Cell]:
    for variant, alpha in ALPHAS.items():
        _, rfid, *fids = TABLE_6.get(variant, ("", None, None, None))
        row = f"alpha {alpha:g}"
        yield _measured(scale, variant, row, rfid)
        yield from _generated(scale, variant, row, zip(("ar", "nar"), fids))


# --- the whole method: recipes of the paper's length, or a scale's two phases of `sem` ------------


class _Path(NamedTuple):
    """The recipes of the whole method on one data set."""

    dataset: str
    first: str
    second: str
    transformers: str  # prefix of their names


def _paths(scale: str) -> list[_Path]:
    if scale == "paper":
        found = []
        for name in DATASETS:
            first = f"{name}_{'tokenizer' if name.startswith('lsun') else 'phase1'}"
            found.append(_Path(name, first, f"{name}_phase2", name))
        return found
    labelled, photos = _scale(scale), mini_photos()
    scales = [labelled, photos] if scale == "mini" else [labelled]
    return [
        _Path(s.prefix, f"{s.prefix}_sem", f"{s.prefix}_sem_phase2", f"{s.prefix}_sem")
        for s in scales
    ]


def _table2(scale: str) -> Iterator[Cell]:
    for path in _paths(scale):
        if path.dataset.startswith("lsun"):  # not in the paper's
            continue
        for rival in rivals(path.dataset):
            run = f"{path.dataset}_{rival.name}"
            yield Cell(rival.row, "rFID", "rFID", run, rival.rfid, None, path.dataset)
            yield Cell(rival.row, "usage", "usage", run, rival.usage, None, path.dataset)
        rfid = _published().get((path.second, "rFID"))
        usage = _published().get((path.first, "codebook usage"))  # phase 2 keeps the codes
        yield Cell("SeQ-GAN", "rFID", "rFID", path.second, rfid, None, path.dataset)
        yield Cell("SeQ-GAN", "usage", "usage", path.second, usage, None, path.dataset)


def _table3(scale: str) -> Iterator[Cell]:
    for path in _paths(scale):
        if path.dataset in ("imagenet256", "mini64", "tiny48"):  # with classes
            continue
        for kind in _kinds(path):
            row, run = f"SeQ-GAN + {kind.upper()}", f"{path.transformers}_{kind}"
            fid = _published().get((run, "FID"))
            yield Cell(row, path.dataset, "FID", run, fid, path.second, path.dataset)


def _table4(scale: str) -> Iterator[Cell]:
    path = _paths(scale)[0]
    for kind in ("ar", "ar_l", "nar", "nar_l"):
        row = f"SeQ-GAN + {kind.upper().replace('_', '-')}"
        run = f"{path.transformers}_{kind}"
        for metric in GENERATED:
            printed = _published()[f"imagenet256_{kind}", metric]
            yield Cell(row, metric, metric, run, printed, path.second, path.dataset)


def _fig8(scale: str) -> Iterator[Cell]:
    for path in _paths(scale):
        for kind in _kinds(path):
            run = f"{path.transformers}_{kind}"
            # the first phase's decoder is the transformer's own, as in other tables
            for words, phase, decoder in (
                ("1st phase", path.first, None), ("2nd phase", path.second, path.second),
            ):  # fmt: skip
                fid = _published().get((phase, f"{kind.upper()} FID with this phase's decoder"))
                row = f"{kind.upper()}, {words}"
                yield Cell(row, path.dataset, "FID", run, fid, decoder, path.dataset)
    own = paper_whole() if scale == "paper" else _scale(scale)
    for kind in ("ar", "nar"):  # not in the paper: what two phases are for
        run = f"{own.prefix}_{ONE_PHASE}_{kind}"
        yield Cell(f"{kind.upper()}, one phase", own.prefix, "FID", run, None, None, own.prefix)


def _kinds(path: _Path) -> tuple[str, ...]:
    return ("nar",) if path.dataset == "ffhq256" else ("ar", "nar")  # AR overfits there (Sec. 4.2)
