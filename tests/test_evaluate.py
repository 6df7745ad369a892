"""`semvq evaluate`: figures that repeat to the last bit, what they say of themselves, refusals."""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import semvq
from semvq import assets
from semvq.backbones.vgg import load_lpips_linear, load_vgg16
from semvq.data.images import ImageSet, to_float, to_uint8
from semvq.data.npz import save_npz
from semvq.evaluation import features
from semvq.evaluation.features import load_network
from semvq.evaluation.frechet import fit, frechet_distance
from semvq.evaluation.generation import classes_like
from semvq.evaluation.kernel import kernel_distance
from semvq.evaluation.neighbours import neighbour_figures
from semvq.evaluation.prediction import MASK_SEED, likelihood
from semvq.evaluation.reconstruction import encoded
from semvq.evaluation.sources import FileImages, UnigramImages
from semvq.evaluation.streaming import Setting, one_thread
from semvq.generators.files import load_generator
from semvq.metrics import perplexity, psnr, soft_perplexity, ssim
from semvq.probe.calibration import expected_calibration_error
from semvq.probe.layers import LOW_LAYERS, SEMANTIC_LAYERS, layer_distances
from semvq.probe.masked import predict_masked
from semvq.probe.teacher_forcing import predict
from semvq.tokenizer.files import load_tokenizer, save_tokenizer
from semvq.tokenizer.model import Tokenizer
from semvq.training.runs import train_recipe
from tests.evaluation_toy import noisy, pixels_of, record, samples, status, toy_net, toy_network
from tests.forks import together
from tests.toy import toy_generator, toy_phase1

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent
SIZE = 64  # of the classifier's input, an eighth of the work of 224
NUM = 135  # images: two units and a rest
PROTOCOLS = {
    "reconstruction": "toy_phase1 --protocol reconstruction --data train",
    "generation": f"toy_nar --protocol generation --data train --val val --num {NUM}",
    "likelihood-ar": "toy_ar --protocol likelihood --data train",
    "likelihood-nar": "toy_nar --protocol likelihood --data train",
    "probe-ar": "toy_ar --protocol probe --data train",
    "probe-nar": "toy_nar --protocol probe --data train",
}
REAL = "--network mobilenet-v2"
GENERATION = "--protocol generation --network toy"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Trained once: a tokenizer, an AR and a NAR run, on photos of unequal classes."""
    folder = tmp_path_factory.mktemp("runs")
    noisy(folder / "train", (60, 45, 30))
    noisy(folder / "val", (24, 23, 23), seed=1)
    for recipe in (toy_phase1(), toy_generator("ar"), toy_generator("nar")):
        assert train_recipe(recipe, folder / recipe.name, data=folder / "train") is None
    samples(folder / "samples", 20)
    return folder


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    """The real classifier at a small size, and one that takes no time."""
    monkeypatch.setattr(features, "CLASSIFIER_SIZE", SIZE)
    monkeypatch.setitem(features.NETWORKS, "toy", toy_network())


@pytest.fixture
def at(runs, tmp_path, monkeypatch):
    """Relative names in the runs' folder, so that commands read as a user's."""
    monkeypatch.chdir(runs)
    return tmp_path


@pytest.fixture(scope="module")
def done():
    return {}


@pytest.fixture
def plain(at, done):
    """What a protocol writes in one process; each is run once."""

    def find(name: str) -> dict:
        if name not in done:
            done[name] = record(f"{PROTOCOLS[name]} {REAL}", file=at / "plain.json")
        return done[name]

    return find


def assert_finite(figures):
    assert figures and all(math.isfinite(value) for value in figures.values()), figures


# the same to the last bit


@pytest.mark.parametrize("name", PROTOCOLS)
def test_neither_batch_nor_workers_change_a_bit(at, plain, name):
    line = f"{PROTOCOLS[name]} {REAL} --batch-size 200 --workers 2"
    found = record(line, file=at / "found.json")
    assert_finite(found["figures"])
    assert found == plain(name)


@pytest.mark.parametrize("name", sorted(PROTOCOLS.keys() - {"reconstruction"}))
def test_two_processes_change_no_bit(at, plain, name):
    (at / "small.py").write_text(
        f"from semvq.evaluation import features\nfeatures.CLASSIFIER_SIZE = {SIZE}\n"
    )
    line = f"{PROTOCOLS[name]} {REAL} --code {at / 'small.py'}"
    found, said = in_processes(2, line, at / "found.json")
    assert found == plain(name)
    assert said.count(" num_images ") == 1, "one process speaks"


def test_two_processes_change_no_bit_at_the_networks_own_size(at, monkeypatch):
    monkeypatch.setattr(features, "CLASSIFIER_SIZE", 224)
    line = f"toy_phase1 --protocol reconstruction --data val {REAL}"
    found = by_torchrun(2, line, at / "found.json")
    assert found == record(line, file=at / "plain.json")
    assert found["facts"]["resize"].endswith("224") and found["figures"]["num_images"] == 70


def in_processes(count: int, line: str, file: Path) -> tuple[dict, str]:
    """What `semvq evaluate …` wrote, and said, in processes that are told what torchrun tells."""
    command = ["evaluate", *line.split(), "--device", "cpu", "--json", str(file)]
    found = together(count, command, file.parent)
    assert found.returncode == 0, found.stderr
    return json.loads(file.read_text()), found.stdout


def by_torchrun(count: int, line: str, file: Path) -> dict:
    """What `torchrun -m semvq evaluate …` wrote."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    # two dashes, or some versions of Python let torchrun take --num for one of its own options
    command += [f"--nproc-per-node={count}", "-m", "--", "semvq", "evaluate", *line.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [*command, "--device", "cpu", "--json", str(file)],
        env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return json.loads(file.read_text())


def test_figures_are_added_up_in_one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_another_seed_is_another_sample(at):
    line = f"toy_nar {GENERATION} --data train --num 20 --seed"
    found = [record(f"{line} {seed}", file=at / "a.json") for seed in (0, 0, 1)]
    assert found[0] == found[1]
    for name in ("fid", "unigram_fid"):
        assert found[0]["figures"][name] != found[2]["figures"][name]


# what the figures are


def whole_set(name: str, tokenizer):
    """All images of a folder, their codes and what these decode to, at once."""
    source = FileImages(ImageSet.open(name), 16)
    (unit,) = source.units([range(source.num)])
    codes = tokenizer.encode(to_float(unit.pixels))
    with torch.no_grad():
        return unit.pixels, unit.labels, codes, to_uint8(tokenizer.decode(codes))


def assert_close(figures, **expected):
    for name, value in expected.items():
        assert figures[name] == pytest.approx(float(value), rel=1e-5, abs=1e-6), name


def fid(a, b):
    return frechet_distance(*(fit(toy_net()(x)) for x in (a, b)))


def test_reconstruction_figures_are_those_of_all_images(at):
    tokenizer = load_tokenizer("toy_phase1")
    images, _, codes, again = whole_set("train", tokenizer)
    figures = record(f"{PROTOCOLS['reconstruction']} --network toy", file=at / "a.json")["figures"]
    a, b = to_float(again), to_float(images)
    assert_close(
        figures, num_images=NUM, rfid=fid(images, again), psnr=psnr(a, b).mean(),
        ssim=ssim(a, b).mean(), codebook_usage=len(codes.unique()) / 16,
        perplexity=perplexity(codes, 16),
    )  # fmt: skip
    with torch.no_grad():
        soft = tokenizer.quantizer.mean_assignment(tokenizer.latents(b))
    assert figures["soft_perplexity"] == pytest.approx(soft_perplexity(soft[None]), rel=1e-3)
    layers = layer_distances(a, b, load_vgg16(), load_lpips_linear())
    assert_close(figures, lpips=sum(layers[n] for n in LOW_LAYERS + SEMANTIC_LAYERS).mean())


def test_likelihood_and_probe_figures_are_those_of_all_images(at):
    tokenizer, generator = load_tokenizer("toy_phase1"), load_generator("toy_ar")
    images, labels, codes, again = whole_set("train", tokenizer)
    found = predict(generator, codes, labels)
    with torch.no_grad():
        shown = to_uint8(tokenizer.decode(found.codes))
    figures = record(f"{PROTOCOLS['probe-ar']} --network toy", file=at / "a.json")["figures"]
    nats = found.cross_entropy.double().mean()
    assert_close(
        figures, cross_entropy_nats_per_code=nats, top1_accuracy=found.correct.double().mean(),
        top5_accuracy=found.in_top5.double().mean(), mean_entropy_nats=found.entropy.mean(),
        prediction_fid=fid(images, shown), rfid=fid(images, again),
        prediction_psnr=psnr(to_float(shown), to_float(images)).mean(),
        calibration_error=expected_calibration_error(found.confidence, found.correct),
    )  # fmt: skip
    figures = record(PROTOCOLS["likelihood-ar"], file=at / "a.json")["figures"]
    assert_close(figures, ar_nats_per_code=nats)


def test_nar_figures_are_those_of_each_images_own_masks(at):
    tokenizer, generator = load_tokenizer("toy_phase1"), load_generator("toy_nar")
    _, labels, codes, _ = whole_set("val", tokenizer)
    line = "toy_nar --data val --network toy --protocol"
    figures = record(f"{line} probe", file=at / "a.json")["figures"]
    for ratio in (0.25, 1.0):
        found, masked = predict_masked(generator, codes, labels, ratio, MASK_SEED)
        hidden = {
            f"cross_entropy_nats_per_code_masked_{ratio:g}": found.cross_entropy[masked].mean(),
            f"top1_accuracy_masked_{ratio:g}": found.correct[masked].double().mean(),
        }
        assert_close(figures, **hidden)
    figures = record(f"{line} likelihood", file=at / "a.json")["figures"]
    assert_close(figures, nar_masked_nats_per_code=generator.evaluation_loss(codes, labels))


def test_generation_figures_are_those_of_all_samples(at):
    tokenizer, generator = load_tokenizer("toy_phase1"), load_generator("toy_nar")
    images, labels, codes, _ = whole_set("train", tokenizer)
    held_out = whole_set("val", tokenizer)[0]
    line = f"toy_nar {GENERATION} --data train --val val --num 70 --seed 2 --steps 3"
    figures = record(line, file=at / "a.json")["figures"]
    classes = classes_like(torch.bincount(labels), 70, 3)
    drawn = generator.sample(70, classes, 2, steps=3)
    with torch.no_grad():
        shown = to_uint8(tokenizer.decode(drawn))
    real, fake = toy_net()(images), toy_net()(shown)
    distance = kernel_distance(fake, real)
    assert_close(
        figures, fid=fid(images, shown), real_fid=fid(images, held_out), kid=distance.value,
        kid_error=distance.error, num_images=70, real_num_images=70, unigram_num_images=70,
        **neighbour_figures(real, fake),
    )  # fmt: skip
    # held-out photos lie among the others, where precision and recall differ
    near = neighbour_figures(real, toy_net()(held_out))
    assert near["precision"] != near["recall"]
    assert_close(figures, **{f"real_{name}": value for name, value in near.items()})
    counts = torch.bincount(codes.flatten(), minlength=16)
    control = UnigramImages(tokenizer, counts, (4, 4), classes, 2)
    (unit,) = control.units([range(70)])
    assert_close(figures, unigram_fid=fid(images, unit.pixels))


# samples in a run, a file and a folder


@pytest.mark.parametrize("kind", ["ar", "nar"])
def test_samples_in_a_run_a_file_and_a_folder_are_judged_alike(at, kind):
    noisy(at / "even", (25, 25, 25))  # equal classes: samples take them in turns, as `sample` does
    line = f"{GENERATION} --data {at / 'even'} --val val"
    drawn = "--num 70 --seed 4 --temperature 0.9"
    assert status(f"sample toy_{kind} {drawn} --out {at / 'out'} --npz {at / 's.npz'}") == 0
    saved = f"--save-images {at / 'saved'}"
    by_run = record(f"toy_{kind} {drawn} {line} {saved}", file=at / "a.json")["figures"]
    own = {k: v for k, v in by_run.items() if not k.startswith("unigram")}
    assert own.keys() < by_run.keys()  # a folder has no tokenizer to decode the control
    for place in ("s.npz", "saved", "out"):
        assert record(f"{at / place} {line}", file=at / "b.json")["figures"] == own, place
    with np.load(at / "s.npz") as file:
        arrays = file["arr_0"]
    files = sorted((at / "saved").iterdir())
    assert [p.name for p in files] == [f"{i:06d}.png" for i in range(70)]
    assert np.array_equal(np.stack([np.asarray(Image.open(p)) for p in files]), arrays)


def test_other_images_in_the_folder_of_saved_ones_are_refused(at, capsys):
    samples(at / "saved", 1)
    line = f"evaluate toy_nar {GENERATION} --data train --num 4 --save-images {at / 'saved'}"
    assert status(line) == 2
    assert_error(capsys, "saved: expected a folder without other images, found 00000.png")


def test_classes_of_samples_are_those_of_the_data_or_equal(at):
    pixels = torch.from_numpy(pixels_of(12)).permute(0, 3, 1, 2)
    save_npz(pixels, None, at / "array.npz")
    save_npz(pixels, torch.arange(12) % 2, at / "classes.npz")
    counts = {}
    for name, options in {
        "data": "--data train",
        "new file": f"--data train --statistics {at / 'r.npz'}",
        "file": f"--statistics {at / 'r.npz'}",
        "no classes": f"--data {at / 'array.npz'}",
        "few classes": f"--data {at / 'classes.npz'}",
    }.items():
        found = record(f"toy_nar {GENERATION} --num 9 {options}", file=at / "a.json")
        counts[name] = (found["facts"]["classes"], found["figures"]["fid"])
    assert counts["data"] == counts["new file"] == counts["file"]
    words = {name: said for name, (said, _) in counts.items()}
    assert words.pop("no classes") == "equal" and set(words.values()) == {"as in the data"}
    # a file of the same images that was made for a folder knows their classes too
    (at / "r.npz").unlink()
    record(f"samples {GENERATION} --data train --statistics {at / 'r.npz'}", file=at / "a.json")
    found = record(f"toy_nar {GENERATION} --num 9 --statistics {at / 'r.npz'}", file=at / "a.json")
    assert (found["facts"]["classes"], found["figures"]["fid"]) == counts["data"]


# what a result says of itself


@pytest.mark.parametrize("name", ["reconstruction", "generation", "likelihood-ar"])
def test_facts_say_what_the_figures_depend_on(plain, name):
    found = plain(name)
    facts, figures = found["facts"], found["figures"]
    run = PROTOCOLS[name].split()[0]
    assert found["protocol"] == name.partition("-")[0] and found["run"] == run
    assert facts["model"] == hashlib.sha256(Path(run, "model.safetensors").read_bytes()).hexdigest()
    assert facts["code space"] == load_tokenizer("toy_phase1").code_space_hash()
    assert facts["tokenizer"] == assets.tensors_hash(load_file("toy_phase1/model.safetensors"))
    assert facts["semvq"] == semvq.__version__ and facts["torch"] == torch.__version__
    assert facts["python"] == ".".join(map(str, sys.version_info[:3])) and facts["device"]
    assert facts["pillow"] == PIL.__version__
    assert (facts["side"], facts["precision"]) == (16, "float32") and "uint8" in facts["pixels"]
    assert ("lpips" in figures) == ("vgg16 weights" in facts) == ("lpips-linear weights" in facts)
    assert facts.get("vgg16 weights") in (None, load_network("vgg16", CPU).weights)
    assert facts.get("lpips-linear weights") in (None, assets.tensors_hash(load_lpips_linear()))
    assert figures["num_images"] == NUM
    if name != "likelihood-ar":
        assert facts["network"] == "MobileNetV2, pooled" and facts["fast"] is False
        assert facts["weights"] == assets.find("mobilenet-v2").sha256
        assert facts["resize"] == f"bicubic with antialiasing, {SIZE}"
    if name == "generation":
        reference = facts["reference"]
        assert reference["network"] == facts["network"] and reference["side"] == 16
        assert reference["source"]["count"] == figures["num_reference_images"] == NUM
        assert facts["samples"]["count"] == NUM and facts["samples"]["seed"] == 0
        assert facts["samples"]["sampling"]["temperature"] == 1.0
        assert facts["unigram of"]["taken"] == f"all of {NUM}"
        assert facts["controls"] == ["unigram", "real"] and facts["classes"] == "as in the data"
        assert facts["score"] == "classifier score (MobileNetV2)"
    else:
        assert facts["images"]["count"] == NUM and len(facts["images"]["fingerprint"]) == 64


@pytest.mark.parametrize("kind", ["ar", "nar"])
def test_a_likelihood_never_stands_without_the_quality_of_its_tokenizer(plain, kind):
    figures = plain(f"likelihood-{kind}")["figures"]
    assert {"psnr", "ssim", "lpips"} < figures.keys()
    name = "ar" if kind == "ar" else "nar_masked"
    nats = figures[f"{name}_nats_per_code"]
    assert 0 < nats < 2 * math.log(16)
    assert figures[f"{name}_bits_per_code"] == pytest.approx(nats / math.log(2))
    assert figures[f"{name}_bits_per_pixel"] == pytest.approx(nats / math.log(2) / 16)
    assert "network" not in plain(f"likelihood-{kind}")["facts"]


def test_a_likelihood_of_one_image_takes_no_features(at):
    source = FileImages(ImageSet.open("train").subset([7]), 16)
    models = load_generator("toy_ar"), load_tokenizer("toy_phase1")
    figures = dict(likelihood(*models, source, Setting()))
    assert figures["num_images"] == 1
    assert_finite(figures)


def test_the_control_takes_a_part_of_many_training_images(at, monkeypatch):
    monkeypatch.setattr("semvq.evaluate_command.MAX_CODED", 40)
    seen = []
    monkeypatch.setattr("semvq.evaluation.generation.encoded", noting(seen))
    found = record(f"toy_nar {GENERATION} --data train --num 20", file=at / "a.json")
    assert sum(seen) == 40 and found["facts"]["unigram of"]["taken"] == f"random 40 of {NUM}"
    assert found["figures"]["num_reference_images"] == NUM


def noting(seen: list[int]):
    def call(tokenizer, pixels):
        seen.append(len(pixels))
        return encoded(tokenizer, pixels)

    return call


def test_large_units_pass_in_small_chunks(at, monkeypatch):
    seen, forward = set(), Tokenizer.decode

    def decode(self, codes):
        seen.add(len(codes))
        return forward(self, codes)

    monkeypatch.setattr(Tokenizer, "decode", decode)
    line = "--data train --network toy"
    record(f"toy_phase1 --protocol reconstruction {line} --batch-size 999", file=at / "a.json")
    record(f"toy_ar --protocol probe {line}", file=at / "a.json")
    assert seen == {16, NUM % 64}, "chunks, and the last unit's rest"


def test_probes_figures_are_never_rounded_to_tf32(at, monkeypatch):
    allowed = []

    def noted(*args):
        allowed.append(torch.backends.cudnn.allow_tf32)
        return predict(*args)

    monkeypatch.setattr("semvq.commands.predict", noted)
    assert torch.backends.cudnn.allow_tf32, "torch's default"
    assert status(f"probe toy_ar --data train --num 2 --out {at / 'p.png'}") == 0
    assert allowed == [False] and torch.backends.cudnn.allow_tf32


def test_another_decoder_is_another_hash(at):
    tokenizer = load_tokenizer("toy_phase1")
    with torch.no_grad():
        tokenizer.last_layer.mul_(1.5)
    save_tokenizer(tokenizer, at / "other", {})
    line = f"toy_nar {GENERATION} --data train --num 20 --decoder"
    one, two = (record(f"{line} {d}", file=at / "a.json") for d in ("toy_phase1", at / "other"))
    assert one["facts"]["model"] == two["facts"]["model"]
    assert one["facts"]["code space"] == two["facts"]["code space"]
    assert one["facts"]["tokenizer"] != two["facts"]["tokenizer"]
    assert one["figures"]["fid"] != two["figures"]["fid"]


def test_fast_features_say_how_far_off_they_are(at, capsys):
    line = "samples --protocol generation --data train --network mobilenet-v2"
    exact, fast = (record(f"{line} {more}", file=at / "deep" / "a.json") for more in ("", "--fast"))
    difference = fast["figures"].pop("fast_feature_difference")
    assert 1e-4 < difference < 0.1
    assert f"fast_feature_difference  {difference:.6g}" in capsys.readouterr().out
    assert fast["facts"]["fast"] is True and exact["facts"]["fast"] is False
    assert fast["figures"].keys() == exact["figures"].keys()
    assert fast["figures"]["fid"] != exact["figures"]["fid"]
    assert fast["figures"]["fid"] == pytest.approx(exact["figures"]["fid"], rel=0.1)


# faults


@pytest.mark.parametrize("num", [2, 5, 20])
def test_few_samples_are_warned_of_and_give_finite_figures(at, capsys, num):
    few = samples(at / "few", num)
    line = f"{few} --protocol generation {REAL} --data {few} --val val"
    found = record(line, file=at / "a.json")
    figures = found["figures"]
    assert_finite(figures)
    warning, *more = found["warnings"]
    lacking = f"num_images {num}: it takes 10, real_num_images {num}: it takes 10"
    assert more == [f"no classifier's score ({lacking})"] * (num < 10)
    assert ("score" in figures) == ("real_score" in figures) == (num >= 10)
    counts = f"num_reference_images {num}, num_images {num}, real_num_images {num}"
    assert f"no more images than the 1280 features ({counts}): fid, real_fid are bias" in warning
    assert f"warning: {warning}" in capsys.readouterr().err
    assert ("kid" in figures) == (num > 5)
    assert figures["fid"] == pytest.approx(0, abs=1e-6) and figures["real_fid"] > 1


@pytest.mark.parametrize("num", [2, 5])
def test_few_reconstructions_are_warned_of_and_give_finite_figures(at, capsys, num):
    few = samples(at / "few", num)
    line = f"toy_phase1 --protocol reconstruction {REAL} --data {few}"
    found = record(line, file=at / "a.json")
    assert_finite(found["figures"])
    (warning,) = found["warnings"]
    assert f"no more images than the 1280 features (num_images {num}): rfid is bias" in warning
    assert f"warning: {warning}" in capsys.readouterr().err


def test_enough_images_are_not_warned_of(at):
    found = record(f"samples {GENERATION} --data train", file=at / "a.json")
    assert found["warnings"] == []


def test_a_reference_of_few_images_is_warned_of_too(at):
    samples(at / "few", 9)
    found = record(f"samples {GENERATION} --data {at / 'few'}", file=at / "a.json")
    (warning,) = found["warnings"]
    assert "than the 12 features (num_reference_images 9): fid is biased" in warning


def test_a_corrupt_image_is_named_once_and_left_out(at):
    data = shutil.copytree("train", at / "data")
    (data / "green" / "7.png").write_bytes(b"no image")
    line = f"toy_ar --protocol probe --network toy --data {data}"  # which goes over them twice
    found = record(line, file=at / "a.json")
    assert_finite(found["figures"])
    assert found["figures"]["num_images"] == NUM - 1
    (warning,) = found["warnings"]
    assert warning.startswith(f"could not be read and was left out: {data}/green/7.png: expected")


def test_a_corrupt_sample_is_named_and_left_out(at):
    (samples(at / "s", 110) / "00070.png").write_bytes(b"no image")
    found = record(f"{at / 's'} {GENERATION} --data train", file=at / "a.json")
    assert_finite(found["figures"])
    assert found["figures"]["num_images"] == 109 and "score" not in found["figures"]
    unread, without = found["warnings"]
    assert "00070.png: expected" in unread
    assert without == "no classifier's score (num_images 109: a file could not be read)"


def test_more_than_a_percent_of_corrupt_images_is_refused(at, capsys):
    data = shutil.copytree("train", at / "data")
    for name in ("blue/0.png", "blue/14.png"):  # the first two of the 20 that --val takes
        (data / name).write_bytes(b"no image")
    generation = "samples --protocol generation --data"
    for line, num in ((f"toy_phase1 --protocol reconstruction --data {data}", 135),
                      (f"{generation} {data}", 135),
                      (f"{generation} train --val {data}", 20)):  # fmt: skip
        capsys.readouterr()
        assert status(f"evaluate {line} --network toy --batch-size 200") == 2
        assert_error(capsys, f"2 of {num} images cannot be read, more than 1%", "blue/14.png")


def test_a_decoder_that_yields_nan_is_refused(at, capsys):
    tokenizer = load_tokenizer("toy_phase1")
    with torch.no_grad():
        tokenizer.last_layer.fill_(torch.nan)
    save_tokenizer(tokenizer, at / "broken", {})
    for line in (f"{at / 'broken'} --protocol reconstruction",
                 f"toy_ar --protocol probe --decoder {at / 'broken'}",
                 f"toy_nar --protocol generation --num 4 --decoder {at / 'broken'}"):  # fmt: skip
        assert status(f"evaluate {line} --network toy --data train") == 2
        assert_error(capsys, "expected finite pixels, found NaN or infinity; the decoder is broken")


def test_grey_and_float_samples_equal_the_plain_ones(at, capsys):
    pixels = pixels_of(30)
    grey = np.broadcast_to(pixels[..., :1], pixels.shape)
    arrays = {
        "plain": pixels, "floats": (pixels / 127.5 - 1).astype(np.float32),
        "shares": pixels / 255, "grey": grey, "flat": grey[..., 0], "single": grey[..., :1],
    }  # fmt: skip
    for name, array in arrays.items():
        np.savez(at / f"{name}.npz", arr_0=array)
    (at / "pngs").mkdir()
    for index, image in enumerate(grey[..., 0]):
        Image.fromarray(image).save(at / "pngs" / f"{index:02d}.png")

    def figures(name: str, more: str = "") -> dict:
        line = f"{at / name} {GENERATION} --data train {more}"
        return record(line, file=at / "a.json")["figures"]

    plain_ones, grey_ones = figures("plain.npz"), figures("grey.npz")
    assert plain_ones["fid"] != grey_ones["fid"]
    assert figures("floats.npz", "--pixel-range -1 1") == plain_ones
    assert figures("shares.npz", "--pixel-range 0 1") == plain_ones
    assert figures("flat.npz") == figures("single.npz") == figures("pngs") == grey_ones
    capsys.readouterr()
    for name, more, message in (
        ("floats", "", "float32, which can mean any range; save them as uint8, or declare it"),
        ("floats", "--pixel-range 0 1", "expected pixels in [0, 1], found -"),
        ("floats", "--pixel-range 1 -1", "--pixel-range: expected LOW below HIGH, found 1 -1"),
    ):
        assert status(f"evaluate {at / name}.npz {GENERATION} --data train {more}") == 2
        assert_error(capsys, message)


# mistakes


def assert_error(capsys, *parts):
    """One line in the end, and no traceback; what came before is progress and warnings."""
    error = capsys.readouterr().err
    line = error.strip().splitlines()[-1]
    assert line.startswith("semvq: error: ") and "Traceback" not in error
    assert all(part in line for part in parts), line


@pytest.fixture(scope="module")
def mistakes(runs):
    """Files that are not what they should be."""
    noisy(runs / "two", (5, 5))
    samples(runs / "flat", 5)
    (runs / "empty").mkdir()
    samples(runs / "mixed", 3)
    Image.new("RGB", (20, 20)).save(runs / "mixed" / "00002.png")
    pixels = pixels_of(3)
    spotted = pixels / 255
    spotted[1, 2, 3, 0] = np.nan
    arrays = {
        "nan": spotted,
        "channels": pixels.transpose(0, 3, 1, 2),
        "none": None,
        "large": pixels_of(3, side=20),
    }
    for name, array in arrays.items():
        np.savez(
            runs / f"{name}.npz", **({"x": np.zeros(2)} if array is None else {"arr_0": array})
        )
    np.savez(runs / "many.npz", arr_0=pixels, arr_1=np.array([0, 1, 999]))
    np.savez(runs / "objects.npz", arr_0=np.array([{"a": 1}], object))
    (runs / "cut.npz").write_bytes((runs / "large.npz").read_bytes()[:800])
    (runs / "begun").mkdir()
    (runs / "begun" / "recipe.json").write_text("{}")
    shutil.copytree(runs / "samples", runs / "begun" / "samples")
    return runs


MISTAKES = {
    "a tokenizer for likelihood": (
        "toy_phase1 --protocol likelihood --data train",
        "toy_phase1: expected an AR or NAR run, found a tokenizer run",
    ),
    "a tokenizer for probe": (
        "toy_phase1 --protocol probe --data train",
        "expected an AR or NAR run, found a tokenizer run",
    ),
    "a tokenizer for generation": (
        "toy_phase1 --protocol generation --data train",
        "expected an AR or NAR run, found a tokenizer run",
    ),
    "no run for reconstruction": (
        "empty --protocol reconstruction --data train",
        "empty: expected the folder of a tokenizer run, found a folder without config.json",
    ),
    "no run for probe": (
        "samples --protocol probe --data train",
        "samples: expected the folder of an AR or NAR run, found a folder without config.json",
    ),
    "no samples": ("empty --protocol generation --data train", "images at empty, found none"),
    "nothing": (
        "absent --protocol generation --data train",
        "images at absent: a folder or a tar file, found neither",
    ),
    "no array file": ("absent.npz --protocol generation --data train", "absent.npz: expected a wh"),
    "a run without a model": (
        "begun --protocol generation --data train",
        "begun: expected a finished run, or samples, found a run that has saved no model yet",
    ),
    "no data": (
        "toy_phase1 --protocol reconstruction",
        "expected --data with held-out images, found none",
    ),
    "no data, likelihood": ("toy_ar --protocol likelihood", "expected --data with held-out image"),
    "neither data nor statistics": (
        "toy_nar --protocol generation",
        "expected --data with training images or statistics to compare with, found none",
    ),
    "other classes, generation": (
        "toy_nar --protocol generation --data two",
        "two: expected the classes 'blue', 'green', 'red'; found 'blue', 'green'",
    ),
    "other classes, likelihood": (
        "toy_ar --protocol likelihood --data two",
        "two: expected the classes 'blue', 'green', 'red'; found 'blue', 'green'",
    ),
    "no classes, probe": (
        "toy_ar --protocol probe --data flat",
        "flat: expected the classes 'blue', 'green', 'red'; found none",
    ),
    "more classes in an array": (
        "toy_nar --protocol generation --data many.npz",
        "expected training images of the run's 3 classes, found 1000",
    ),
    "empty data": ("toy_phase1 --protocol reconstruction --data empty", "at empty, found none"),
    "mixed sizes": (
        "mixed --protocol generation --data train",
        "mixed/00002.png: expected samples of one size, 16x16 as the first, found 20x20",
    ),
    "other size of reference images": (
        "samples --protocol generation --data large.npz",
        "large.npz: expected images of 16 px as the samples, found 20",
    ),
    "truncated": ("cut.npz --protocol generation --data train", "cut.npz: expected a whole .npz"),
    "truncated data": ("samples --protocol generation --data cut.npz", "cut.npz: expected a whole"),
    "objects": (
        "objects.npz --protocol generation --data train",
        "objects.npz: expected a whole .npz file of arrays, found: Object arrays cannot be loaded",
    ),
    "no arr_0": ("none.npz --protocol generation --data train", "images in 'arr_0', found x"),
    "no arr_0, mu or sigma": (
        "samples --protocol generation --data none.npz",
        "none.npz: expected images in 'arr_0', found x",
    ),
    "channels first": (
        "channels.npz --protocol generation --data train",
        "expected square images (N, H, H, 3) in 'arr_0', found (3, 3, 16, 16)",
    ),
    "NaN": (
        "nan.npz --protocol generation --data train --pixel-range 0 1",
        "nan.npz: expected finite pixels, found NaN or infinity",
    ),
    "no samples asked for": (
        "toy_nar --protocol generation --data train --num 0",
        "--num: expected at least 1, found 0",
    ),
    "no batch": (
        "toy_phase1 --protocol reconstruction --data train --batch-size 0",
        "--batch-size: expected at least 1, found 0",
    ),
    "a NAR option": (
        "toy_ar --protocol generation --data train --steps 3",
        "--steps: expected a sampling option of toy_ar",
    ),
    "weights of no Inception": (
        "toy_phase1 --protocol reconstruction --data train --weights cut.npz",
        "expected --network inception beside a weights file, found toy",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_line(mistakes, at, capsys, name):
    line, message = MISTAKES[name]
    assert status(f"evaluate {line} --network toy", "--json", at / "a.json") == 2
    assert_error(capsys, message)
    assert not (at / "a.json").exists()


def test_a_network_nobody_knows_is_refused(at, capsys):
    assert status("evaluate samples --protocol generation --data train --network resnet") == 2
    assert_error(capsys, "expected one of inception, ", "found network 'resnet'")
