"""Every figure that the paper printed of its own runs, as read from its pages, beside its cell.

Written out from the paper's text, once more and independently of the recipes: `None` is a "-".
"""

import pytest

from semvq.recipes import find_recipe
from semvq.recipes.tables import ALPHAS, TABLE_6, cells

Figures = dict[tuple[str, str, str], float | None]


def grid(dataset: str, columns: tuple[str, ...], rows: dict[str, tuple[float | None, ...]]):
    """(data set, row, column): figure."""
    return {
        (dataset, row, column): figure
        for row, figures in rows.items()
        for column, figure in zip(columns, figures, strict=True)
    }


TABLE1 = grid(
    "ablation256",
    ("rFID", "AR", "AR-L", "AR-L-2X", "NAR"),
    {
        "baselineVQ": (3.45, 16.97, 13.86, 11.49, 13.26),
        "+Conv x2": (3.22, 17.19, 14.50, 12.03, 13.51),
        "+Attention x2": (2.90, 17.42, 14.91, 12.04, 14.02),
    },
)
TABLE2 = grid(
    "ffhq256",
    ("usage", "rFID"),
    {
        "VQGAN": (0.42, 4.42),
        "ViT-VQGAN": (None, 3.13),
        "RQ-VAE, 16 x 16 x 4": (None, 3.88),
        "MoVQ, 16 x 16 x 4": (None, 2.26),
        "SeQ-GAN": (1.00, 3.12),
    },
) | grid(
    "imagenet256",
    ("usage", "rFID"),
    {
        "VQGAN": (0.44, 7.94),
        "VQGAN, 16384 codes": (0.059, 4.98),
        "ViT-VQGAN": (0.96, 1.28),
        "RQ-VAE, 8 x 8 x 16": (None, 1.83),
        "MoVQ, 16 x 16 x 4": (None, 1.12),
        "SeQ-GAN": (1.00, 1.99),
    },
)
TABLE3 = {
    ("lsun_church256", "SeQ-GAN + AR", "lsun_church256"): 2.45,
    ("lsun_cat256", "SeQ-GAN + AR", "lsun_cat256"): 3.61,
    ("lsun_bedroom256", "SeQ-GAN + AR", "lsun_bedroom256"): 1.44,
    ("ffhq256", "SeQ-GAN + NAR", "ffhq256"): 3.62,
    ("lsun_church256", "SeQ-GAN + NAR", "lsun_church256"): 2.25,
    ("lsun_cat256", "SeQ-GAN + NAR", "lsun_cat256"): 4.60,
    ("lsun_bedroom256", "SeQ-GAN + NAR", "lsun_bedroom256"): 2.05,
}
TABLE4 = grid(
    "imagenet256",
    ("FID", "IS"),
    {
        "SeQ-GAN + AR": (7.55, 121.3),
        "SeQ-GAN + AR-L": (6.25, 140.9),
        "SeQ-GAN + NAR": (4.99, 189.1),
        "SeQ-GAN + NAR-L": (4.55, 200.4),
    },
)
TABLE5 = grid(
    "ablation256",
    ("usage", "rFID", "AR", "NAR"),
    {
        "VQGAN": (0.435, 4.07, 17.19, 14.58),
        "+F&N": (0.997, 2.93, 24.91, None),
        "+K-means": (1.00, 3.54, 16.84, 15.02),
        "+H(D)": (1.00, 3.45, 16.97, 13.26),
    },
)
LOSSES = {
    "L_low": (3.45, 16.97, 13.26),
    "A": (3.01, 15.19, 11.78),
    "B": (2.93, 14.47, 11.58),
    "C": (2.81, 14.08, 10.52),
    "D": (2.62, 13.34, 9.56),
    "L_sem": (2.77, 12.07, 8.84),
    "E": (4.65, 17.88, 14.00),
}
TABLE6 = grid("ablation256", ("rFID", "AR", "NAR"), LOSSES)
TICKS = {"L_low": 5, "A": 6, "B": 5, "C": 4, "D": 3, "L_sem": 2, "E": 1}  # layers of each row
# the figure has curves; its ends are Table 6's rows
FIG6 = grid(
    "ablation256",
    ("rFID", "AR", "NAR"),
    {f"alpha {alpha}": (None, None, None) for alpha in (0.2, 0.4, 0.6, 0.8)}
    | {"alpha 0": LOSSES["L_low"], "alpha 1": LOSSES["L_sem"]},
)
FIG8_ROWS = {
    "AR, 1st phase": (7.83, None, 3.49, 4.73, 2.15),
    "AR, 2nd phase": (7.55, None, 2.45, 3.61, 1.44),
    "NAR, 1st phase": (5.31, 3.89, 3.41, 5.22, 2.88),
    "NAR, 2nd phase": (4.99, 3.62, 2.25, 4.60, 2.05),
}
FIG8_COLUMNS = ("imagenet256", "ffhq256", "lsun_church256", "lsun_cat256", "lsun_bedroom256")
FIG8 = {
    (column, row, column): figure
    for row, figures in FIG8_ROWS.items()
    for column, figure in zip(FIG8_COLUMNS, figures, strict=True)
    if (row[:2], column) != ("AR", "ffhq256")  # not trained by them
} | {("imagenet256", f"{kind}, one phase", "imagenet256"): None for kind in ("AR", "NAR")}


@pytest.mark.parametrize(
    "table, printed",
    [
        ("1", TABLE1), ("2", TABLE2), ("3", TABLE3), ("4", TABLE4), ("5", TABLE5), ("6", TABLE6),
        ("fig6", FIG6), ("fig8", FIG8),
    ],
)  # fmt: skip
def test_every_cell_stands_beside_what_the_paper_printed(table: str, printed: Figures):
    found = {(c.dataset, c.row, c.column): c.published for c in cells(table, "paper")}
    assert found == printed


@pytest.mark.parametrize("table", ["1", "4", "5", "6", "fig6"])
def test_small_scales_stand_beside_the_papers_figures(table: str):
    def figures(scale: str) -> dict[tuple[str, str], float | None]:
        return {(c.row, c.column): c.published for c in cells(table, scale)}

    assert figures("tiny") == figures("mini") == figures("paper")


def test_rows_are_the_losses_that_they_are_named_for():
    names = {row: variant for variant, (row, *_) in TABLE_6.items()}
    for row, count in TICKS.items():
        layers = find_recipe(f"ablation256_{names[row]}").task.perceptual.layer_weights()
        assert len(layers) == count and ("logit" in layers) == (row != "L_low"), row
    for variant, alpha in ALPHAS.items():
        assert find_recipe(f"ablation256_{variant}").task.perceptual.alpha == alpha
