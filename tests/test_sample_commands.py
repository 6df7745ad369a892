"""`semvq sample` and `semvq edit`: what they write, and their refusals."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semvq import sample_commands
from semvq.cli import main, parser
from semvq.command_parts import check_classes, quoted
from semvq.data.images import ImageSet, to_uint8
from semvq.data.npz import save_npz
from semvq.generators.files import load_generator
from semvq.generators.guidance import SCHEDULES
from semvq.generators.nar import ORDERS
from semvq.generators.rejection import CANDIDATE_STRIDE, log_likelihood
from semvq.tokenizer.files import load_tokenizer
from semvq.training.runs import train_recipe
from tests.toy import photos, toy_generator, toy_phase1


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    data = photos(folder / "photos")
    for recipe in (toy_phase1(), toy_generator("ar"), toy_generator("nar")):
        assert train_recipe(recipe, folder / recipe.name, data=data) is None
    Image.new("L", (20, 20), 255).save(folder / "small_mask.png")
    mask = np.zeros((20, 24), np.uint8)
    mask[:10, :12] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask * 0).save(folder / "black.png")
    (folder / "text.png").write_text("no image")
    return folder


@pytest.fixture
def at(runs, tmp_path, monkeypatch):
    """Relative names in the runs' folder, so that commands read as a user's."""
    monkeypatch.chdir(runs)
    return tmp_path


def status(line: str, *more: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([*line.split(), *map(str, more)])
    return stop.value.code


def pngs(folder) -> list[np.ndarray]:
    return [np.asarray(Image.open(p)) for p in sorted(folder.glob("0*.png"))]


@pytest.mark.parametrize("kind", ["ar", "nar"])
def test_the_best_of_one_is_plain_sampling(at, kind):
    line = f"sample toy_{kind} --num 3 --out"
    assert status(line, at / "plain") == 0
    assert status(line, at / "one", "--keep-best", 1, "--scorer", "likelihood") == 0
    plain, one = pngs(at / "plain"), pngs(at / "one")
    assert len(plain) == 3 and all(map(np.array_equal, plain, one))


@pytest.mark.parametrize("kind", ["ar", "nar"])
def test_bf16_draws_what_the_rounded_weights_draw(at, runs, kind):
    assert status(f"sample toy_{kind} --num 3 --bf16 --out", at / "half") == 0
    generator = load_generator(runs / f"toy_{kind}").to(torch.bfloat16)
    codes = generator.sample(3, torch.arange(3) % generator.config.num_classes, 0)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        images = to_uint8(load_tokenizer(runs / "toy_phase1").decode(codes))
    found, expected = pngs(at / "half"), images.permute(0, 2, 3, 1).numpy()
    assert len(found) == 3 and all(map(np.array_equal, found, expected))


def test_keep_best_is_the_argmax_of_the_candidates_in_any_batch(at, capsys):
    line = "sample toy_nar --num 3 --class red --seed 4 --keep-best 4 --scorer likelihood --out"
    for size in (3, 2):
        assert status(line, at / str(size), "--batch-size", size) == 0
    generator, tokenizer = load_generator("toy_nar"), load_tokenizer("toy_phase1")
    red = torch.full((3,), 2)
    drawn = [generator.sample(3, red, 4, first_index=c * CANDIDATE_STRIDE) for c in range(4)]
    scores = torch.stack([log_likelihood(generator, codes, red) for codes in drawn])
    best = torch.stack([drawn[c][i] for i, c in enumerate(scores.argmax(0).tolist())])
    with torch.no_grad():
        expected = to_uint8(tokenizer.decode(best)).permute(0, 2, 3, 1).numpy()
    for size in ("3", "2"):
        assert all(map(np.array_equal, pngs(at / size), expected))
    mean = f"kept the best of 4 by mean log p of its codes: mean score {scores.amax(0).mean():.3f}"
    assert mean in capsys.readouterr().out


def test_the_default_scorer_is_a_named_classifier(at, capsys, monkeypatch):
    class Classifier(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert images.shape[-2:] == (224, 224)
            return torch.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], 1)

    monkeypatch.setitem(sample_commands.CLASSIFIERS, "efficientnet-lite0", Classifier)
    assert status("sample toy_ar --num 2 --keep-best 3 --out", at / "out") == 0
    said = capsys.readouterr().out
    assert "kept the best of 3 by confidence of efficientnet-lite0: mean score 0." in said


def test_npz_holds_the_images_and_classes_as_adm_does(at):
    file = at / "deep" / "samples.npz"
    assert status("sample toy_nar --num 5 --batch-size 2 --out", at / "out", "--npz", file) == 0
    with np.load(file) as found:
        assert sorted(found) == ["arr_0", "arr_1"]
        assert found["arr_0"].dtype == np.uint8 and found["arr_0"].shape == (5, 16, 16, 3)
        assert np.array_equal(found["arr_0"], np.stack(pngs(at / "out")))
        assert found["arr_1"].tolist() == [0, 1, 2, 0, 1]
    save_npz(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), None, at / "no_suffix")
    with np.load(at / "no_suffix") as found:
        assert list(found) == ["arr_0"]


def test_orders_and_schedules_reach_the_sampler(at):
    lines = {
        "plain": "",
        "halton": "--order halton",
        "strong": "--guidance 9999",
        "linear": "--guidance 9999 --guidance-schedule linear",
        "constant": "--guidance 9999 --guidance-schedule constant",
    }
    drawn = {}
    for name, more in lines.items():
        assert status(f"sample toy_nar --num 6 {more} --out", at / name) == 0
        drawn[name] = np.stack(pngs(at / name)).tobytes()
    assert drawn["strong"] == drawn["constant"] and len(set(drawn.values())) == 4


# rows and columns of the masked corner, in pixels of 16
SIDES = {"--mask mask.png": (8, 8), "--box 0,0,0.4,0.5": (8, 6), "--outpaint left:0.25": (16, 4)}


@pytest.mark.parametrize("area", SIDES)
def test_edit_writes_results_decodings_and_a_strip(at, area):
    out = at / "out"
    line = f"edit toy_nar photos/red/0.png {area} --num 3 --class blue --steps 2 --out"
    assert status(line, out, "--npz", at / "edit.npz") == 0
    results, decoded = pngs(out), pngs(out / "decoded")
    assert len(results) == len(decoded) == 3
    strip = np.asarray(Image.open(out / "strip.png"))
    assert strip.shape == (16, 5 * 18 - 2, 3)
    original, shown = strip[:, :16].astype(int), strip[:, 18:34]
    inside = (shown != original).any(2)
    side = SIDES[area]
    assert inside[: side[0], : side[1]].all() and not inside[side[0] :].any()
    assert not inside[:, side[1] :].any(), "the original, but for what is masked"
    tinted = (original[inside] + (255, 0, 255)) / 2
    assert np.abs(shown[inside] - tinted).max() <= 1
    for i, (result, raw) in enumerate(zip(results, decoded, strict=True)):
        assert np.array_equal(strip[:, 36 + 18 * i : 52 + 18 * i], result)
        assert np.array_equal(result[:, 10:], original[:, 10:])  # far from the mask
        assert np.abs(result[inside].astype(int) - raw[inside]).max() <= 1
        assert not np.array_equal(raw[:, 10:], original[:, 10:])
    with np.load(at / "edit.npz") as found:
        assert np.array_equal(found["arr_0"], np.stack(results))
        assert found["arr_1"].tolist() == [0, 0, 0]
    assert status(line.replace("--num 3", "--num 1"), out) == 0
    assert len(pngs(out)) == len(pngs(out / "decoded")) == 1  # nothing left of the larger set


def test_edit_in_batches_and_without_a_class(at):
    line = "edit toy_nar photos/red/0.png --box 0,0,1,0.5 --num 3 --seed 3 --out"
    assert status(line, at / "a") == 0 and status(line, at / "b", "--batch-size", 2) == 0
    assert all(map(np.array_equal, pngs(at / "a"), pngs(at / "b")))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sample toy_nar --order halton --choice-temperature 4", "none with order halton, found 4"),
        ("sample toy_ar --order halton", "--order: expected a sampling option of toy_ar"),
        ("sample toy_nar --order spiral", "invalid choice: 'spiral'"),
        ("sample toy_nar --guidance-schedule linear", "guidance other than 1 for 'linear'"),
        ("sample toy_nar --guidance-schedule steep", "invalid choice: 'steep'"),
        ("sample toy_nar --keep-best 0", "--keep-best: expected at least 1, found 0"),
        ("sample toy_nar --keep-best 999 --scorer likelihood", "1 to 256 candidates, found 999"),
        ("sample toy_nar --scorer likelihood", "--scorer: expected --keep-best beside it"),
        ("sample toy_nar --scorer beauty", "invalid choice: 'beauty'"),
        ("edit toy_ar photos/red/0.png --box 0,0,1,1", "toy_ar: expected a NAR run, found an AR"),
        ("edit toy_phase1 photos/red/0.png --box 0,0,1,1", "expected an AR or NAR run"),
        ("edit toy_nar photos/red/0.png", "one of the arguments --mask --box --outpaint"),
        ("edit toy_nar photos/red/0.png --box 0,0,1,1 --mask mask.png", "not allowed with"),
        ("edit toy_nar photos/red/0.png --mask black.png", "white where to repaint, found none"),
        ("edit toy_nar photos/red/0.png --mask small_mask.png", "size 24x20, found 20x20"),
        ("edit toy_nar photos/red/0.png --mask text.png", "text.png: expected JPEG"),
        ("edit toy_nar photos/red/0.png --mask absent.png", "absent.png: No such file"),
        ("edit toy_nar text.png --box 0,0,1,1", "text.png: expected JPEG"),
        ("edit toy_nar photos/red/0.png --box 0,0,1", "--box: expected x0,y0,x1,y1"),
        ("edit toy_nar photos/red/0.png --outpaint up:0.5", "--outpaint: expected one of left"),
        (
            "edit toy_nar photos/red/0.png --box 0,0,1,1 --class pink",
            "expected a name among 'blue', ",
        ),
        ("edit toy_nar photos/red/0.png --box 0,0,1,1 --num 0", "--num: expected at least 1"),
    ],
)
def test_mistakes_end_in_one_line(at, capsys, line, message):
    assert status(line, *(["--out", at / "out"])) == 2
    error = capsys.readouterr().err
    assert message in error.strip().splitlines()[-1] and "Traceback" not in error
    assert not (at / "out").exists()


def test_the_pages_commands_parse_and_it_names_every_option():
    page = (Path(__file__).parent.parent / "docs" / "sampling.md").read_text()
    whole = page.replace("\\\n", "")  # continued lines
    lines = [line for line in whole.splitlines() if line.startswith("semvq ")]
    assert len(lines) > 8
    for line in lines:
        parser().parse_args(line.split()[1:])
    grammar = parser()._subparsers._group_actions[0].choices
    for command in ("sample", "edit"):
        for action in grammar[command]._actions:
            for option in set(action.option_strings) - {"-h", "--help", "--code", "--device"}:
                assert f"`{option}" in page or f"{option} " in page, option
    assert {*SCHEDULES, *ORDERS, *sample_commands.CLASSIFIERS, "likelihood"} <= set(
        re.findall(r"[\w-]+", page)
    )


def test_the_command_line_offers_what_the_library_knows():
    """Its words are written out there, since help must not import torch."""
    grammar = parser()._subparsers._group_actions[0].choices
    offered = {a.dest: a.choices for a in grammar["sample"]._actions if a.choices}
    assert offered["guidance_schedule"] == list(SCHEDULES) and offered["order"] == list(ORDERS)
    assert offered["scorer"] == [*sample_commands.CLASSIFIERS, "likelihood"]


def test_names_of_classes_stay_apart_and_long_lists_are_cut(tmp_path):
    assert quoted(["Melone, groß", "Apfel"]) == "'Melone, groß', 'Apfel'"
    assert quoted([]) == "none"
    names = [f"c{number:02d}" for number in range(12)]
    assert quoted(names).endswith("'c09' and 2 more") and "c10" not in quoted(names)
    for name in names:
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    check_classes(ImageSet.open(tmp_path), names, 12)
    with pytest.raises(ValueError, match="the first that differs is number 11"):
        check_classes(ImageSet.open(tmp_path), [*names[:11], "other"], 12)
