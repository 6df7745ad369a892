import csv
import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from semvq.cli import main
from semvq.correlate_command import agreements, bootstrap, read, spearman

FACTS = {"features: network": "inception", "seed": "0"}


def compared(path, first: int, last: int, facts=FACTS, kinds=("AR FID",)):
    """Tokenizers first to last: usage rises as FID falls, PSNR follows nothing, rFID goes along."""
    figures = {}
    for number in range(first, last):
        values = {"rFID": 10.0 + number, "codebook usage": 1 - 0.1 * number, "SSIM": 0.5}
        values |= {"PSNR": (number * 7) % 5} | dict.fromkeys(kinds, 50.0 + 3 * number**2)
        figures[f"t{number}"] = {
            row: {"value": value, "plus_minus": None} for row, value in values.items()
        }
    path.write_text(json.dumps({"figures": figures, "facts": facts, "warnings": []}))
    return path


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, arguments)))
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("values", [range(9), [3, 1, 2, 2, 2, 9, 0], [1, 1, 2, 2, 0, 0, 5]])
def test_spearman_is_scipys(values):
    x = np.array(list(values), dtype=float)
    y = np.sin(x * 3 + np.arange(len(x)))
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


def test_what_goes_along_with_fid_agrees_whichever_way_is_better(tmp_path):
    found = read([compared(tmp_path / "a.json", 0, 6)])
    by_name = {a.figure: a for a in agreements(found, "AR FID")}
    assert by_name["rFID"].rho == 1 and by_name["codebook usage"].rho == 1
    assert by_name["rFID"].low == 1 and by_name["rFID"].num == 6
    assert abs(by_name["PSNR"].rho) < 0.5
    assert np.isnan(by_name["SSIM"].rho)
    assert [a.figure for a in agreements(found, "AR FID")][-1] == "SSIM"
    assert agreements(found, "NAR FID") == []


def test_the_interval_does_not_depend_on_the_order_of_tokenizers():
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 5, 12), rng.normal(size=12)
    order = rng.permutation(12)
    assert bootstrap(x[order], y[order]) == bootstrap(x, y)


@pytest.mark.slow
def test_the_interval_covers_as_often_as_it_says():
    rng, covered, widths = np.random.default_rng(1), 0, []
    truth = 6 / np.pi * np.arcsin(0.8 / 2)  # Spearman's of a normal pair of correlation 0.8
    for _ in range(60):
        x = rng.normal(size=30)
        y = 0.8 * x + 0.6 * rng.normal(size=30)
        low, high = bootstrap(x, y)
        covered += low <= truth <= high
        widths.append(high - low)
    assert 51 <= covered <= 60 and 0.2 < np.mean(widths) < 0.6  # [-1, 1] covers always


def test_the_command_joins_files_and_writes_a_table(tmp_path, capsys):
    files = [
        compared(tmp_path / "a.json", 0, 3, kinds=("AR FID", "NAR FID")),
        compared(tmp_path / "b.json", 3, 6),
    ]
    main_is_done(["correlate", *map(str, files), "--csv", str(tmp_path / "found.csv")])
    out = capsys.readouterr().out
    assert "with AR FID" in out and "with NAR FID" not in out
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    assert {row["judge"] for row in rows} == {"AR FID"}
    assert {row["num"] for row in rows} == {"6"}


def test_photos_may_lie_elsewhere_and_other_machines_are_told(tmp_path, capsys):
    here = FACTS | {"photos: images": "/here/val.tar", "torch": "2.13", "device": "x86_64"}
    there = here | {"photos: images": "/there/val.tar", "torch": "2.11"}
    first = compared(tmp_path / "a.json", 0, 3, here)
    main_is_done(["correlate", str(first), str(compared(tmp_path / "b.json", 3, 6, there))])
    assert "Not all measured alike: torch 2.11, 2.13\n" in capsys.readouterr().out
    main_is_done(["correlate", str(first), str(compared(tmp_path / "c.json", 3, 6, here))])
    assert "Not all measured alike" not in capsys.readouterr().out


def main_is_done(arguments) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0


def test_what_cannot_be_joined_is_refused(tmp_path, capsys):
    first = compared(tmp_path / "a.json", 0, 4)
    other = compared(tmp_path / "b.json", 4, 8, FACTS | {"seed": "1"})
    assert "another 'seed': 1 for 0" in refused(capsys, "correlate", first, other)
    again = compared(tmp_path / "c.json", 3, 8)
    assert "found t3 again" in refused(capsys, "correlate", first, again)
    few = compared(tmp_path / "d.json", 0, 3)
    assert "at least 4 tokenizers" in refused(capsys, "correlate", few)
    (tmp_path / "e.json").write_text("[1]")
    assert "found something else" in refused(capsys, "correlate", tmp_path / "e.json")
    assert "found none (No such file" in refused(capsys, "correlate", tmp_path / "none.json")


def test_one_name_in_two_files_is_two_tokenizers_and_what_is_no_number_is_left_out(tmp_path):
    first, second = compared(tmp_path / "a.json", 0, 3), compared(tmp_path / "b.json", 0, 3)
    record = json.loads(second.read_text())
    for rows in record["figures"].values():
        rows["PSNR"]["value"], rows["SSIM"]["value"] = 30.0, float("nan")
    second.write_text(json.dumps(record))
    found = read([first, second])
    assert sorted(found) == [
        f"{file}: t{number}" for file in (first, second) for number in range(3)
    ]
    assert "SSIM" in found[f"{first}: t0"] and "SSIM" not in found[f"{second}: t0"]


def test_seeds_in_folders_are_all_kept_and_the_same_weights_are_refused(tmp_path, capsys):
    files = []
    for seed in range(3):
        (tmp_path / f"seed{seed}").mkdir()
        files.append(compared(tmp_path / f"seed{seed}" / "page.json", 0, 1))
        record = json.loads(files[-1].read_text())
        record["figures"]["t0"]["PSNR"]["value"] = seed
        files[-1].write_text(json.dumps(record | {"tokenizers": {"t0": f"weights of {seed}"}}))
    assert len(read(files)) == 3
    again = json.loads(files[0].read_text())
    again["figures"]["t0"]["PSNR"]["value"] = 0.001  # another machine's rounding
    (tmp_path / "again.json").write_text(json.dumps(again))
    assert "found t0 again" in refused(capsys, "correlate", *files, tmp_path / "again.json")
