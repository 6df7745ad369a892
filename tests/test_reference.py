"""Reference statistics: kept without loss, read by and from other tools, checked on every use."""

import json
import re
from dataclasses import replace

import numpy as np
import PIL
import pytest
import torch

from semvq.evaluation import feature_sets, features, reference
from semvq.evaluation.feature_sets import KEPT, KEPT_FACT, FeatureSums
from semvq.evaluation.frechet import frechet_distance
from semvq.evaluation.kernel import kernel_distance
from semvq.evaluation.neighbours import neighbour_figures
from semvq.evaluation.reference import (
    MUST_AGREE,
    check_reference,
    load_reference,
    open_images,
    open_reference,
    save_reference,
)
from semvq.evaluation.sources import ArrayImages, FileImages
from semvq.evaluation.streaming import Setting
from tests.evaluation_toy import WIDTH, noisy, pixels_of, record, samples, status, toy_net
from tests.evaluation_toy import toy_network as network

FID_ONLY = {"num_images", "fid", "score", "score_std"}
PAIRS = {"kid", "kid_error", "precision", "recall", "density", "coverage"}


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    """A network that takes no time, alone and as if it were Inception."""
    monkeypatch.setitem(features.NETWORKS, "toy", network())
    monkeypatch.setitem(features.NETWORKS, "toy2", network(name="toy2"))
    monkeypatch.setitem(features.NETWORKS, "finer", network(weights="b" * 64))
    monkeypatch.setitem(features.NETWORKS, "resized", network(resize="to 7"))
    monkeypatch.setitem(features.NETWORKS, "inception", network(name="inception toy"))
    monkeypatch.setattr(reference, "NUM_FEATURES", WIDTH)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with photos of three classes and another tool's samples, as the current one."""
    monkeypatch.chdir(tmp_path)
    noisy(tmp_path / "train", (40, 30, 10))
    noisy(tmp_path / "val", (8, 8, 8), seed=1)
    samples(tmp_path / "samples", 30)
    samples(tmp_path / "large", 12, side=20)
    return tmp_path


def feature_set(num=50, seed=0, num_classes=3, **facts):
    generator = torch.Generator().manual_seed(seed)
    sums = FeatureSums(num_classes)
    labels = torch.arange(num) % max(num_classes, 1)
    sums.add(torch.rand(num, WIDTH, generator=generator), labels)
    found = sums.result(Setting(toy_net()).feature_facts(16, {"images": "x"}))
    return replace(found, facts=found.facts | facts)


@pytest.mark.parametrize("num", [9, 50])  # fewer and more rows than features
def test_what_is_kept_comes_back_to_the_last_bit(tmp_path, num):
    found = feature_set(num)
    save_reference(found, tmp_path / "deep" / "r.npz")
    again = load_reference(tmp_path / "deep" / "r.npz")
    assert torch.equal(again.gaussian.mean, found.gaussian.mean)
    assert torch.equal(again.gaussian.covariance, found.gaussian.covariance)
    assert again.gaussian.num == num and again.facts == found.facts
    assert torch.equal(again.features, found.features)
    assert again.features.dtype == found.features.dtype == torch.float32
    assert again.class_counts.tolist() == found.class_counts.tolist()
    other = feature_set(40, seed=1).gaussian
    assert frechet_distance(again.gaussian, other) == frechet_distance(found.gaussian, other)


def test_the_file_is_one_that_other_tools_read(tmp_path):
    found = feature_set(50)
    save_reference(found, tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz", allow_pickle=False) as arrays:
        mu, sigma = arrays["mu"], arrays["sigma"]
        assert all(arrays[name].dtype.kind != "O" for name in arrays.files)
    assert (mu.shape, sigma.shape) == ((WIDTH,), (WIDTH, WIDTH))
    assert mu.dtype == sigma.dtype == np.float64
    rows = found.features.double().numpy()
    assert np.allclose(mu, rows.mean(0), rtol=0, atol=1e-12)
    assert np.allclose(sigma, np.cov(rows, rowvar=False), rtol=0, atol=1e-12)


def kept(rows, size=3000):
    sums = FeatureSums()
    for part in rows.split(size):
        sums.add(part)
    return sums.result({})


def test_up_to_a_number_all_rows_are_kept_in_order():
    rows = torch.rand(KEPT, 2)
    assert torch.equal(kept(rows).features, rows)


@pytest.mark.parametrize("num", [KEPT + 10, 3 * KEPT])
def test_of_more_rows_a_random_part_is_kept_whatever_they_come_in(num):
    rows = torch.arange(2.0 * num).view(-1, 2)
    found = kept(rows)
    numbers = found.features[:, 0] / 2
    assert torch.equal(found.features, rows[numbers.long()])
    assert len(numbers) == KEPT and bool((numbers.diff() > 0).all()), "in order, each once"
    assert float(numbers.mean()) == pytest.approx(num / 2, rel=0.02), "of all parts alike"
    assert found.gaussian.num == num and found.class_counts is None
    assert torch.allclose(found.gaussian.mean, rows.double().mean(0))
    for size in (64, 999, num):
        assert torch.equal(kept(rows, size).features, found.features)


def test_a_perfect_sampler_is_no_worse_on_images_in_the_order_of_their_classes(monkeypatch):
    monkeypatch.setattr(feature_sets, "KEPT", 500)
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(30, 4, generator=generator).repeat_interleave(100, 0) * 3
    in_turn = centres[torch.randperm(3000, generator=generator)]
    real, fake = (
        kept(torch.randn(3000, 4, generator=generator) + places, 64).features
        for places in (centres, in_turn)
    )
    assert len(real) == len(fake) == 500
    distance = kernel_distance(fake, real)
    assert abs(distance.value) < 3 * distance.error
    figures = neighbour_figures(real, fake)
    assert min(figures.values()) > 0.7, figures


MU, SIGMA = np.zeros(WIDTH), np.eye(WIDTH)
FACTS = {"num": np.int64(9), "facts": np.array(json.dumps({"source": {}}))}
WRONG = {
    "no mu": ({"sigma": SIGMA, "x": MU}, "statistics 'mu' and 'sigma', found sigma, x"),
    "no sigma": ({"mu": MU}, "statistics 'mu' and 'sigma', found mu"),
    "wide mu": ({"mu": np.zeros(9), "sigma": SIGMA}, r"found \(9,\) and \(12, 12\)"),
    "flat sigma": ({"mu": MU, "sigma": MU}, r"mu \(D,\) and sigma \(D, D\), found \(12,\) and"),
    "square mu": ({"mu": SIGMA, "sigma": SIGMA}, r"found \(12, 12\) and \(12, 12\)"),
    "one number": ({"mu": np.float64(1), "sigma": np.float64(1)}, r"found \(\) and \(\)"),
    "NaN": ({"mu": MU + np.nan, "sigma": SIGMA}, "finite statistics, found NaN or infinity"),
    "infinity": ({"mu": MU, "sigma": SIGMA + np.inf}, "finite statistics, found NaN or inf"),
    "text": ({"mu": np.array(["a"]), "sigma": SIGMA}, "numbers as 'mu', found <U1"),
    "complex": ({"mu": MU, "sigma": SIGMA + 0j}, "numbers as 'sigma', found complex128"),
    "objects": ({"mu": np.array([None]), "sigma": SIGMA}, "arrays, found: Object arrays cannot"),
    "no JSON": ({"mu": MU, "sigma": SIGMA, **FACTS, "facts": np.array("{")}, "semvq wrote, found"),
    "a list": ({"mu": MU, "sigma": SIGMA, **FACTS, "facts": np.array("[]")}, "semvq wrote, found"),
    "no source": (
        {"mu": MU, "sigma": SIGMA, **FACTS, "facts": np.array('{"source": 3}')},
        "semvq wrote, found",
    ),
    "no count": ({"mu": MU, "sigma": SIGMA, "facts": FACTS["facts"]}, r"found .* \('num'\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_statistics_are_refused(here, capsys, name):
    arrays, message = WRONG[name]
    np.savez("wrong.npz", **arrays)
    with pytest.raises(ValueError, match=rf"wrong\.npz: expected .*{message}"):
        load_reference(here / "wrong.npz")
    line = "evaluate samples --protocol generation --network inception --statistics wrong.npz"
    assert status(line) == 2
    assert_one_line(capsys, "wrong.npz: expected ")


def assert_one_line(capsys, *parts):
    (line,) = capsys.readouterr().err.strip().splitlines()
    for part in ("semvq: error: ", *parts):
        assert part in line, line


def test_broken_statistics_are_refused(here, capsys):
    save_reference(feature_set(), here / "r.npz")
    whole = (here / "r.npz").read_bytes()
    line = "evaluate samples --protocol generation --network toy"
    for more in ("--statistics r.npz", "--data r.npz"):
        for data in (whole[:500], b"", b"x" * 99):
            (here / "r.npz").write_bytes(data)
            assert status(f"{line} {more}") == 2
            assert_one_line(capsys, "r.npz: expected a whole .npz file of arrays, found")


@pytest.mark.parametrize("name", MUST_AGREE)
def test_statistics_of_something_else_are_refused_with_both_named(tmp_path, name):
    wanted = Setting(toy_net()).feature_facts(16, {}) | KEPT_FACT
    check_reference(feature_set(), wanted, tmp_path / "r.npz")
    other = feature_set(**{name: "another"})
    expected = re.escape(f"{name} '{wanted[name]}' as the samples have")
    with pytest.raises(ValueError, match=rf"r\.npz: expected .*{expected}, found 'another'"):
        check_reference(other, wanted, tmp_path / "r.npz")
    missing = replace(other, facts={k: v for k, v in other.facts.items() if k != name})
    with pytest.raises(ValueError, match=f"with {name} .* found 'None'"):
        check_reference(missing, wanted, None)


LINE = "samples --protocol generation --network"
MISMATCHES = {
    "network": ("samples", "toy2", "", "with network 'toy2' as the samples have, found 'toy'"),
    "weights": ("samples", "finer", "", f"weights '{'b' * 64}' as the samples have, found 'aaaa"),
    "resize": ("samples", "resized", "", "resize 'to 7' as the samples have, found 'none'"),
    "side": ("large", "toy", "", "side '20' as the samples have, found '16'"),
    "precision": ("samples", "toy", "--fast", "precision 'bfloat16' as the samples have, found 'f"),
    "images": ("samples", "toy", "--data val", "statistics of val (fingerprint "),
    "kind": ("samples", "toy", "--data array.npz", "statistics of array.npz (fingerprint None)"),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_kept_statistics_are_checked_on_every_use(here, capsys, name):
    found = record(f"{LINE} toy --data train --statistics r.npz", file=here / "a.json")
    np.savez("array.npz", arr_0=pixels_of(9))
    run, net, more, message = MISMATCHES[name]
    capsys.readouterr()
    line = f"evaluate {run} --protocol generation --network {net} {more} --statistics r.npz"
    assert status(line) == 2
    assert_one_line(capsys, "r.npz: expected ", message, "found")
    again = record(f"{LINE} toy --data train --statistics r.npz", file=here / "b.json")
    alone = record(f"{LINE} toy --statistics r.npz", file=here / "c.json")
    assert again["figures"] == alone["figures"] == found["figures"]
    assert found["facts"]["reference"]["source"]["images"] == "train"
    assert alone["facts"]["reference"] == found["facts"]["reference"]


def test_changed_images_under_the_same_name_are_noticed(here, capsys):
    np.savez("array.npz", arr_0=pixels_of(9))
    line = f"{LINE} toy --data array.npz --statistics r.npz"
    record(line, file=here / "a.json")
    np.savez("array.npz", arr_0=pixels_of(9, seed=1))
    capsys.readouterr()
    assert status(f"evaluate {line}") == 2
    assert_one_line(capsys, "r.npz: expected statistics of array.npz (sha256 ", "found those of")


def test_another_tools_statistics_give_fid_alone_and_say_so(here):
    rows = np.random.default_rng(0).random((99, WIDTH))
    np.savez("foreign.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    for option in ("--data", "--statistics"):
        found = record(f"{LINE} inception {option} foreign.npz", file=here / "a.json")
        assert found["figures"].keys() == FID_ONLY
        assert found["facts"]["reference"] == {
            "statistics": "foreign.npz",
            "network": "not said, taken for Inception",
            "figures": "FID",
        }
    held_out = record(f"{LINE} inception --data foreign.npz --val val", file=here / "a.json")
    assert held_out["figures"]["real_fid"] > 0 and "real_kid" not in held_out["figures"]


def test_another_tools_statistics_are_of_inception_or_refused(here, capsys):
    np.savez("foreign.npz", mu=MU, sigma=SIGMA)
    assert status(f"evaluate {LINE} toy --data foreign.npz") == 2
    message = "expected statistics that say which network they are of, found none; "
    assert_one_line(capsys, "foreign.npz", message, "Inception's, but the samples' are toy")
    np.savez("foreign.npz", mu=MU[:9], sigma=SIGMA[:9, :9])
    assert status(f"evaluate {LINE} inception --data foreign.npz") == 2
    assert_one_line(capsys, "foreign.npz: expected 12 features of Inception, found 9")


def test_a_reference_batch_has_its_own_statistics_and_images_for_pairs(here):
    images = pixels_of(40, seed=3)
    np.savez("images.npz", arr_0=images)
    rows = np.random.default_rng(0).random((99, WIDTH))
    mu, sigma = rows.mean(0), np.cov(rows, rowvar=False)
    np.savez("numbers.npz", mu=mu, sigma=sigma)
    np.savez("batch.npz", arr_0=images, mu=mu, sigma=sigma)
    found = {
        name: record(f"{LINE} inception --data {name}.npz", file=here / "a.json")
        for name in ("images", "numbers", "batch")
    }
    figures = {name: one["figures"] for name, one in found.items()}
    assert figures["batch"]["fid"] == figures["numbers"]["fid"] != figures["images"]["fid"]
    assert figures["batch"].keys() > PAIRS
    assert {k: figures["batch"][k] for k in PAIRS} == {k: figures["images"][k] for k in PAIRS}
    facts = found["batch"]["facts"]["reference"]
    assert facts["mean and covariance"] == "as in batch.npz"
    assert facts["source"]["images"] == "batch.npz" and facts["source"]["count"] == 40
    assert figures["images"]["num_reference_images"] == 40
    assert "num_reference_images" not in figures["batch"]  # the file does not say


def test_our_statistics_do_as_data_too(here):
    by_file = record(f"{LINE} toy --data train --statistics r.npz", file=here / "a.json")
    by_data = record(f"{LINE} toy --data r.npz", file=here / "b.json")
    assert by_data["figures"] == by_file["figures"]
    assert by_data["facts"]["reference"] == by_file["facts"]["reference"]


def test_statistics_twice_are_refused_whichever_would_be_taken(here, capsys):
    rows = np.random.default_rng(0).random((99, WIDTH))
    numbers = {"mu": rows.mean(0), "sigma": np.cov(rows, rowvar=False)}
    np.savez("numbers.npz", **numbers)
    np.savez("batch.npz", **numbers, arr_0=pixels_of(9))
    line = "--data train --statistics r.npz"
    for name in ("absent.npz", "r.npz"):  # would be written, or taken
        for data in ("numbers.npz", "batch.npz"):
            capsys.readouterr()
            assert status(f"evaluate {LINE} inception --data {data} --statistics {name}") == 2
            assert_one_line(
                capsys, f"{data}: expected images alone beside --statistics {name}, fou"
            )
        record(f"{LINE} inception {line}", file=here / "a.json")
    assert not (here / "absent.npz").exists()


def test_versions_are_kept_and_need_not_agree(here):
    found = record(f"{LINE} toy --data train --statistics r.npz", file=here / "a.json")
    kept = load_reference(here / "r.npz")
    assert kept.facts["versions"]["pillow"] == PIL.__version__
    assert kept.facts["versions"].items() <= found["facts"].items()
    save_reference(replace(kept, facts=kept.facts | {"versions": {"torch": "0"}}), here / "r.npz")
    again = record(f"{LINE} toy --data train --statistics r.npz", file=here / "b.json")
    assert again["figures"] == found["figures"]
    assert again["facts"]["reference"]["versions"] == {"torch": "0"}


def test_images_to_compare_with(here):
    np.savez("array.npz", arr_0=pixels_of(9), arr_1=np.arange(9) % 2)
    np.savez("numbers.npz", mu=MU, sigma=SIGMA)
    assert open_images(None, 16, None, 0) is None
    assert open_images(here / "numbers.npz", 16, None, 0) is None
    assert isinstance(open_images(here / "train", 16, None, 0), FileImages)
    array = open_images(here / "array.npz", 16, None, 0)
    assert isinstance(array, ArrayImages)
    measured = open_reference(array, here / "array.npz", None, Setting(toy_net()), 16)
    assert measured.class_counts.tolist() == [5, 4]
    with pytest.raises(ValueError, match=r"array\.npz: expected images of 20 px .* found 16"):
        open_images(here / "array.npz", 20, None, 0)


def test_nothing_to_compare_with_is_refused(here, capsys):
    assert status(f"evaluate {LINE} toy") == 2
    assert_one_line(capsys, "expected --data with training images or statistics to compare with")
    assert status(f"evaluate {LINE} toy --statistics absent.npz") == 2
    assert_one_line(capsys, "expected --data with training images or statistics to compare with")


@pytest.mark.slow
def test_real_inception_against_another_tools_statistics(here, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(here)
    rows = np.random.default_rng(0).random((2100, 2048))
    np.savez("foreign.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    found = record("large --protocol generation --data foreign.npz", file=here / "a.json")
    assert found["figures"].keys() == {"num_images", "fid"}
    assert found["figures"]["fid"] > 100
    assert found["facts"]["resize"] == "TF1 bilinear, 299"
    assert found["facts"]["reference"]["network"] == "not said, taken for Inception"
