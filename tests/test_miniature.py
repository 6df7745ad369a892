"""The miniature's jobs: commands that exist, in an order that works, and an end in any case."""

import base64
import csv
import io
import json
import tarfile
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from math import log
from pathlib import Path

import pytest
from PIL import Image
from scipy.stats import t
from scripts import cheap_figures, differences, miniature, prediction_picture, reproduction_plots

from semvq import table_command
from semvq.correlate_command import agreements, read
from semvq.grammar import parser
from semvq.recipes.tables import cells


@pytest.fixture
def options(tmp_path):
    (tmp_path / "jobs").mkdir()
    photos = {"data": Path("train"), "val": Path("val.tar")}
    return Namespace(
        **photos, out=tmp_path, workers=0, gpus=[""], at_once=1, seeds=[0, 1, 2], claims=False
    )


def test_every_job_is_a_command_and_stands_after_what_it_needs(options):
    before: set[str] = set()
    for job in miniature.jobs(options):
        words = parser().parse_args(job.words)
        if words.command == "table":
            assert table_command._chosen(words), job
        assert set(job.after) <= before and job.name not in before, job
        before.add(job.name)


def test_its_jobs_make_what_they_name(options):
    for variant, places in (miniature.CLAIMS | miniature.ONE_SEED).items():
        for table, row in places.items():
            runs = {cell.run for cell in cells(table, "mini") if cell.row == row}
            assert f"mini64_{variant}" in runs and f"mini64_{variant}_ar" in runs


def test_the_claims_alone_are_fewer_jobs(options):
    every = {job.name for job in miniature.jobs(options)}
    options.claims, options.seeds = True, [2]
    found = {job.name for job in miniature.jobs(options)}
    assert {"statistics", "low-2", "sem-2", "fig8-2", "numbers-table6-claims-2"} < found < every
    assert not any(name.startswith(("compare", "kmeans")) for name in found)


def worked_off(options, monkeypatch, failing: str) -> dict[str, str]:
    def do(options, job, gpu):
        state = "failed" if job.name == failing else "done"
        (options.out / "jobs" / f"{job.name}.{state}").touch()

    monkeypatch.setattr(miniature, "_do", do)
    monkeypatch.setattr(miniature.time, "sleep", lambda _: pytest.fail("it waits for ever"))
    miniature.work(options, "")
    return {j.name: miniature._state(options, j.name) for j in miniature.jobs(options)}


def test_all_is_done_where_nothing_fails(options, monkeypatch):
    assert set(worked_off(options, monkeypatch, "").values()) == {"done"}


def test_what_needs_a_failed_job_is_left_and_all_else_is_done(options, monkeypatch):
    states = worked_off(options, monkeypatch, "autoencoder-0")
    assert states["autoencoder-0"] == "failed"
    assert {n for n, s in states.items() if s == "new"} >= {
        "low-0",
        "fig8-0",
        "numbers-table6-0",
    }
    assert states["low-1"] == states["fig8-2"] == states["numbers-fig6-claims-1"] == "done"


def test_plots_are_made_of_its_numbers(tmp_path, monkeypatch, capsys):
    with (tmp_path / "fig6-seed0.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(("run", "decoder", "metric", "seed", "value"))
        figures = (
            ("low", 9.0, 60.0),
            ("alpha40", 10.0, 50.0),
            ("alpha80", 12, 30),
            ("sem", 11, 40),
        )
        for variant, rfid, fid in figures:
            writer.writerow((f"mini64_{variant}", "", "rFID", 0, rfid))
            writer.writerow((f"mini64_{variant}_ar", "", "FID", 0, fid))
    runs = reproduction_plots.by_run(reproduction_plots.numbers(tmp_path))
    assert runs["mini64_sem", "0"] == {"rFID": 11.0, "AR": 40.0}
    monkeypatch.setattr("sys.argv", ["plots", str(tmp_path)])
    reproduction_plots.main()
    *pictures, said = capsys.readouterr().out.splitlines()
    for line in pictures:
        assert Path(line).read_bytes().startswith(b"\x89PNG")
    assert "AR samples, 4 tokenizers of seed 0: rank correlation -1.00" in said


def page_of(path: Path, photos: list[str], shade: int) -> Path:
    """The part of a comparison page that shows photos (compare's own tests have a whole one)."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    kinds = ("original", "reconstruction by a", "prediction by a")
    source = f"data:image/png;base64,{data}"
    images = [f'<img alt="{k}: {p}" src="{source}">' for p in photos for k in kinds]
    path.write_text("".join(images))
    return path


def test_a_picture_shows_each_pages_own_pictures_of_the_same_photos(tmp_path):
    pages = {
        name: prediction_picture.Pictures(page_of(tmp_path / name, photos, shade).read_text()).found
        for name, photos, shade in (("a", ["x.jpg", "y"], 10), ("b", ["x.jpg", "y"], 200))
    }
    figure = prediction_picture.picture(pages)
    shades = [int(axes.images[0].get_array()[0, 0, 0]) for axes in figure.axes]
    assert shades == [10, 10, 10, 200, 200] * 2
    pages["c"] = {"z": pages["a"]["x.jpg"]}
    with pytest.raises(ValueError, match="c: expected the first page's photos"):
        prediction_picture.picture(pages)


def measured(folder: Path, name: str, fid: float, side: int = 64) -> None:
    """What `semvq table` leaves of a tokenizer and of its AR run."""
    (folder / "measured").mkdir(parents=True, exist_ok=True)
    facts = dict.fromkeys((*cheap_figures.ALIKE, "device", "torch"), "x") | {"side": side}
    figures = dict.fromkeys(cheap_figures.RECONSTRUCTION, fid / 2)
    own = {"figures": figures, "facts": facts | {"images": {"fingerprint": "f"}, "tokenizer": name}}
    drawn = {"count": 9, "seed": 4, "sampling": {}}
    samples = {"figures": {"fid": fid}, "facts": {"samples": drawn}}
    (folder / "measured" / f"{name}-inception.json").write_text(json.dumps(own))
    (folder / "measured" / f"{name}_ar+own-9-inception.json").write_text(json.dumps(samples))
    (folder / f"{name}_ar").mkdir()
    lines = ({"val/cross_entropy": 9.0}, {"loss": 1.0}, {"val/cross_entropy": log(2) * fid})
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / f"{name}_ar" / "log.jsonl").write_text(text)


def test_correlate_reads_what_tables_measured(tmp_path, monkeypatch):
    for number in range(4):
        measured(tmp_path / "seed0", f"mini64_v{number}", 50.0 + number)
    out = tmp_path / "figures.json"
    monkeypatch.setattr("sys.argv", ["figures", str(tmp_path / "seed0"), str(out)])
    cheap_figures.main()
    found = read([out])
    assert found[f"{out}: mini64_v3"]["AR cross-entropy"] == pytest.approx(53)
    assert found[f"{out}: mini64_v3"]["rFID"] == 26.5
    by_figure = {a.figure: a.rho for a in agreements(found, "AR FID")}
    assert by_figure["AR cross-entropy"] == by_figure["rFID"] == -by_figure["PSNR"] == 1
    measured(tmp_path / "seed0", "mini64_other", 60.0, side=32)
    with pytest.raises(
        SystemExit, match="mini64_v0: expected it measured as mini64_other, found another side"
    ):
        cheap_figures.main()


def test_two_calls_unpack_the_held_out_photos_once(tmp_path):
    with tarfile.open(tmp_path / "val.tar", "w") as file:
        for number in range(300):
            file.addfile(tarfile.TarInfo(f"cat/{number}.png"))
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(lambda _: miniature._unpack(tmp_path / "val.tar", tmp_path / "out"), range(4))
        )
    assert len(list((tmp_path / "out" / "cat").iterdir())) == 300
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "val.tar"]


def test_a_broken_tar_of_held_out_photos_leaves_nothing(tmp_path):
    (tmp_path / "val.tar").write_bytes(b"no tar")
    with pytest.raises(tarfile.ReadError):
        miniature._unpack(tmp_path / "val.tar", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["val.tar"]


def table_file(
    folder: Path, name: str, values: dict[tuple[str, str], float | str], commit: str = "a"
) -> Path:
    file = folder / name
    facts = {"column": "AR", "scale": "tiny", "dataset": "tiny48", "commit": commit}
    with file.open("w", newline="") as text:
        writer = csv.DictWriter(text, ["row", "seed", "value", *facts])
        writer.writeheader()
        for (row, seed), value in values.items():
            writer.writerow({"row": row, "seed": seed, "value": value, **facts})
    return file


def differences_of(monkeypatch, files: list[Path], baseline: str) -> None:
    monkeypatch.setattr("sys.argv", ["x", *map(str, files), "--baseline", baseline])
    differences.main()


def test_rows_differ_by_pairs_of_seeds_and_a_t_interval(tmp_path, monkeypatch, capsys):
    base = {("old", "0"): 10.0, ("old", "1"): 20.0, ("old", "2"): 15.0}
    clear = {("clear", "0"): 9.0, ("clear", "1"): 18.9, ("clear", "2"): 14.1}
    worse = {("worse", "0"): 11.0, ("worse", "1"): 21.1, ("worse", "2"): 15.9}
    vague = {("vague", "0"): 9.0, ("vague", "1"): 20.5, ("vague", "2"): 14.0}
    once = {("once", "1"): 21.0, ("once", "2"): ""}
    parts = (base, clear | worse, vague | once)
    files = [table_file(tmp_path, f"{n}.csv", part) for n, part in enumerate(parts)]
    differences_of(monkeypatch, files, "old")
    # by hand: -1, -1.1, -0.9 are 0.1 apart, and 4.3027 is Student's t of two degrees of freedom
    assert capsys.readouterr().out.splitlines() == [
        "clear, AR, seeds 0 1 2: -1, -1.1, -0.9; mean -1 ± 0.248, lower",
        "worse, AR, seeds 0 1 2: +1, +1.1, +0.9; mean +1 ± 0.248, higher",
        "vague, AR, seeds 0 1 2: -1, +0.5, -1; mean -0.5 ± 2.15, not told apart",
        "once, AR, seeds 1: +1 (no verdict with fewer than 3 seeds)",
    ]


def test_student_s_t_is_scipys():
    assert set(range(differences.FEWEST - 1, 10)) == set(differences.T)
    for degrees, bound in differences.T.items():
        assert bound == pytest.approx(t.ppf(0.975, degrees), abs=1e-4)


def test_what_cannot_be_compared_is_said(tmp_path, monkeypatch):
    many = {(row, str(seed)): seed + len(row) for row in ("old", "newer") for seed in range(11)}
    with pytest.raises(SystemExit, match="expected 3 to 10 seeds, found 11"):
        differences_of(monkeypatch, [table_file(tmp_path, "many.csv", many)], "old")
    alone = table_file(tmp_path, "alone.csv", {("old", "0"): 1.0})
    with pytest.raises(SystemExit, match="expected rows with seeds"):
        differences_of(monkeypatch, [alone], "old")


def test_cheap_figures_differ_too(tmp_path, monkeypatch, capsys):
    for seed in range(3):
        figures = {name: {"PSNR": {"value": 20 + seed + n}} for n, name in enumerate("ab")}
        (tmp_path / f"figures-seed{seed}.json").write_text(json.dumps({"figures": figures}))
    differences_of(monkeypatch, sorted(tmp_path.iterdir()), "a")
    out = capsys.readouterr().out
    assert out == "b, PSNR, seeds 0 1 2: +1, +1, +1; mean +1 ± 0, higher\n"


def test_two_tries_of_a_seed_are_not_mixed_up(tmp_path, monkeypatch):
    files = [table_file(tmp_path, f"{n}.csv", {("old", "0"): 10.0 + n}) for n in range(2)]
    with pytest.raises(SystemExit, match="expected one AR of old for seed 0 in all files, found 1"):
        differences_of(monkeypatch, files, "old")
    with pytest.raises(SystemExit, match="expected one of old; found 'new'"):
        differences_of(monkeypatch, files[:1], "new")
    other = table_file(tmp_path, "other.csv", {("new", "0"): 10.0}, commit="b")
    with pytest.raises(SystemExit, match="expected one commit of seed 0 in all files, found b and"):
        differences_of(monkeypatch, [files[0], other], "old")
    other.write_text("row,column\nold,AR\n")
    with pytest.raises(SystemExit, match="expected files of semvq table --csv"):
        differences_of(monkeypatch, [other], "old")
