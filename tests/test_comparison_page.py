"""The comparison page: its checks, marks and text here, and what it does in a real browser."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest
import torch
import torch.nn.functional as F

from semvq.data.pixels import png_bytes
from semvq.probe.comparison_page import (
    Compared,
    Comparison,
    Figure,
    Point,
    Scatter,
    Value,
    comparison_html,
    write_comparison,
)
from tests.browser import Browser, needs_browser, working_browser

VOID = {"meta", "img", "input"}


def toy_photos(num: int, size: int, seed: int = 0) -> torch.Tensor:
    """Colourful discs before a gradient, with a little texture."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    photos = []
    for _ in range(num):
        colours = torch.rand(8, 3, 1, 1, generator=generator) * 2 - 1
        photo = colours[0] * (1 - y) + colours[1] * y
        for colour in colours[2:]:
            left, top, radius = torch.rand(3, generator=generator)
            disc = (x - left) ** 2 + (y - top) ** 2 < (0.1 + 0.2 * radius) ** 2
            photo = torch.where(disc, colour * (1 - 0.5 * x), photo)
        photos.append(photo + 0.06 * torch.randn(3, size, size, generator=generator))
    return torch.stack(photos).clamp(-1, 1)


def blurred(images: torch.Tensor, strength: int) -> torch.Tensor:
    window = 2 * strength + 1
    return F.avg_pool2d(F.pad(images, [strength] * 4, mode="replicate"), window, stride=1)


def toy_compared(name: str, photos: torch.Tensor, strength: int, grid: int = 8) -> Compared:
    generator = torch.Generator().manual_seed(strength)
    num = len(photos)
    # as a real predictor: surest at the end, in raster order
    surprise = torch.linspace(6, 1, grid * grid).view(1, grid, grid).expand(num, -1, -1)
    entropy = (surprise + torch.randn(num, grid, grid, generator=generator)).clamp(0.01, 7)
    correct = torch.rand(num, grid, grid, generator=generator) < (1 - entropy / 7)
    return Compared(
        name,
        f"alpha {strength / 4:g} · 0.67M parameters · AR fruit_ar_{strength}",
        blurred(photos, strength),
        blurred(photos, strength + 4),
        correct,
        entropy,
        blurred(toy_photos(8, photos.shape[-1], seed=strength), strength),
    )


def toy_figures(num: int) -> list[Figure]:
    def row(*pairs):
        return [Value(*pair) if pair else None for pair in (pairs * num)[:num]]

    return [
        Figure("PSNR", row((24.31, 0.12), (22.87, 0.11), (21.02, 0.14)), "dB", "higher"),
        Figure(
            "LPIPS",
            row((0.2113, 0.0041), (0.1702, 0.0037), (0.1689, 0.0039)),
            "",
            "lower",
            "VGG16, v0.1; how different two photos look.",
        ),
        Figure("R² of chroma", row((0.93, 0.01), (0.921, 0.012), (0.85, 0.01)), "", "higher"),
        Figure(
            "cross-entropy of codes",
            row((5.42, 0.03), (4.91, 0.03), (4.11, 0.02)),
            "nats",
            "lower",
            "AR transformer on held-out photos.",
            beside="LPIPS",
        ),
        Figure("top-1 accuracy", row((0.112, 0.004), (0.138, 0.004), (0.21, 0.005)), "", "higher"),
        Figure("entropy of prediction", row((5.3, 0.02), (4.8, 0.02), (4.0, 0.02)), "nats"),
        Figure("codes used", row((1013, 0), (1024, 0), (731, 0)), "of 1,024", "higher"),
        Figure("agreement of classes", row((0.61, 0.04), None, (0.66, 0.03)), "", "higher"),
        Figure("FID of samples", row((61.2,), (55.0,), (58.3,)), "", "lower", "One seed."),
        Figure("parameters", row((671_232, 0), (671_232, 0), (671_232, 0)), ""),
    ]


def toy(num: int = 3, photos: int = 2, size: int = 16, grid: int = 4) -> Comparison:
    images = toy_photos(photos, size)
    names = ["pixels only", "half and half", "semantic, with a rather long name of its own", "d"]
    compared = [toy_compared(names[i], images, i + 1, grid) for i in range(num)]
    figures = toy_figures(num)
    spots = ((0.211, 5.42, 0.004, 0.03), (0.17, 4.91, 0.004, 0.03), (0.169, 4.1, 0.004, 0.02))
    points = [Point(c.name, *spot) for c, spot in zip(compared, spots * num)]
    scatters = [
        Scatter(
            "What is lost, what is learnt", "LPIPS", "cross-entropy, nats", points, "Low left."
        ),
        Scatter(
            "Pixels against codes",
            "PSNR, dB",
            "top-1 accuracy",
            [Point(c.name, 20 + 2 * i, 0.1 * (i + 1)) for i, c in enumerate(compared)],
            "Without error bars: one run each.",
        ),
    ]
    facts = [
        ("seed", "0"),
        ("photos", f"{photos} of 240 held-out ones"),
        ("weights of pixels only", "sha256 " + "0123456789abcdef" * 4),
        ("torch", torch.__version__),
    ]
    labels = [f"photo {i + 1} (apple)" for i in range(photos)]
    lead = "Three tokenizers of one size, trained on the same photos, differ in one number: alpha."
    return Comparison("Three tokenizers", lead, images, labels, compared, figures, scatters, facts)


class Reader(HTMLParser):
    """Keeps what a page holds, and refuses one whose tags do not balance."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self._open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_page_is_well_formed_and_names_everything(tmp_path):
    comparison = toy()
    write_comparison(tmp_path / "page.html", comparison)
    read = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    for words in (comparison.title, comparison.lead, *comparison.labels, "24.31 ± 0.12", "61.20"):
        assert words in read.text
    assert all(c.subtitle in read.text for c in comparison.compared)
    assert all(f.name in read.text for f in comparison.figures)
    assert all(value in read.text for _, value in comparison.facts)
    assert all(attrs["alt"] for tag, attrs in read.tags if tag == "img")
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    links = [attrs["href"] for tag, attrs in read.tags if tag == "a"]
    assert links and all(link in [f"#{i}" for i in ids] for link in links)


def test_page_fetches_nothing():
    page = comparison_html(toy())
    words = re.sub(r"base64,[^\"]+", "", page)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<link|<iframe", words, re.IGNORECASE)
    sources = [v for _, a in Reader(page).tags for k, v in a.items() if k in ("src", "srcset")]
    assert sources and all(s.startswith("data:image/png;base64,") for s in sources)
    assert "default-src 'none'" in page


def test_names_are_escaped():
    evil = "<script>alert(1)</script>\"' onload=x &amp; </style>"
    photos = toy_photos(1, 16)
    one = dataclasses.replace(toy_compared("x", photos, 1, 4), name=evil, subtitle=evil)
    page = comparison_html(
        Comparison(
            evil,
            evil,
            photos,
            [evil],
            [one],
            [Figure(evil, [Value(1.0, 0.1)], evil, "higher", evil)],
            [Scatter(evil, evil, evil, [Point(evil, 1, 2)], evil)],
            [(evil, evil)],
        )
    )
    read = Reader(page)
    assert sum(tag == "script" for tag, _ in read.tags) == 1
    assert not any("onload" in attrs for _, attrs in read.tags)
    assert read.text.count(evil) >= 14  # as words, to the letter


def test_every_picture_is_embedded_once():
    comparison = toy(num=3, photos=4, grid=8)
    page = comparison_html(comparison)
    uris = re.findall(r"data:image/png;base64,[A-Za-z0-9+/=]+", page)
    assert len(uris) == 4 * (1 + 3 * 4) + 3 * 8
    assert len(set(uris)) == len(uris)


def test_a_row_of_samples_says_what_drew_them():
    comparison = toy(num=3)
    kinds = ("AR", "NAR", "")
    named = [dataclasses.replace(c, samples_by=k) for c, k in zip(comparison.compared, kinds)]
    read = Reader(comparison_html(dataclasses.replace(comparison, compared=named)))
    assert "pixels only · AR" in read.words and "half and half · NAR" in read.words
    assert comparison.compared[2].name in read.words
    pictures = [attrs["alt"] for tag, attrs in read.tags if tag == "img"]
    assert "sample 1 by half and half · NAR" in pictures


def test_large_photos_stay_small():
    photos = toy_photos(3, 256)
    items = [toy_compared(str(i), photos, i, 16) for i in (1, 2, 3)]
    items = [dataclasses.replace(c, samples=None) for c in items]
    page = comparison_html(Comparison("t", "l", photos, ["a", "b", "c"], items))
    pictures = [photos, *(c.reconstructions for c in items), *(c.predictions for c in items)]
    raw = sum(len(png_bytes(image)) for images in pictures for image in images)
    assert len(page) < 1.4 * raw + 100_000
    assert 4 * len(page) < 10_000_000  # twelve photos


@pytest.mark.parametrize(
    ("better", "values", "expected"),
    [
        ("higher", [(1, 0.1), (2, 0.1), (3, 0.1)], ["", "", "best"]),
        ("lower", [(1, 0.1), (2, 0.1), (3, 0.1)], ["best", "", ""]),
        ("higher", [(1, 0.1), (2.9, 0.1), (3, 0.1)], ["", "tied", "tied"]),
        ("lower", [(1, 0.1), (1.3, 0.2), (3, 0.1)], ["tied", "tied", ""]),
        # one wide interval reaches the best without being second
        ("higher", [(1, 2.0), (2, 0.1), (3, 0.1)], ["tied", "", "tied"]),
        ("higher", [(3, 0), (3, 0), (2, 0)], ["tied", "tied", ""]),
        ("higher", [(3, 0), (2, 0), None], ["best", "", ""]),
        ("higher", [(3, 0.1), None, None], ["", "", ""]),
        ("higher", [None, None, None], ["", "", ""]),
        ("higher", [(3, None), (2, 0.1), (1, 0.1)], ["", "", ""]),
        (None, [(1, 0.1), (2, 0.1), (3, 0.1)], ["", "", ""]),
    ],
)
def test_only_a_clear_winner_is_marked(better, values, expected):
    figure = Figure("f", [v and Value(*v) for v in values], better=better)
    assert figure.marks() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([Value(24.314, 0.123), Value(22.0, 0.4)], 2),
        ([Value(0.2113, 0.0041)], 4),
        ([Value(123456.7, 1234.0)], 0),
        ([Value(5, 0), None], 0),
        ([Value(0.51234, 0)], 4),
        ([Value(1234.5)], 0),
        ([Value(0, 0)], 0),
        ([Value(1e-12, 0)], 8),
        ([None], 0),
    ],
)
def test_a_row_shows_the_digits_that_mean_something(values, expected):
    assert Figure("f", values).decimals() == expected


def test_marks_are_words_and_signs_not_only_colour():
    text = " ".join(Reader(comparison_html(toy())).text.split())
    assert "24.31 ± 0.12 ★ best" in text
    assert "0.1702 ± 0.0037 ≈ no clear difference" in text
    assert "61.20 ± ?" in text and "61.20 ± ? ★" not in text
    assert "671,232" in text and "671,232 ± 0" not in text


def test_cross_entropy_needs_the_reconstruction_beside_it():
    comparison = toy()
    assert "Read it only together with LPIPS." in comparison_html(comparison)
    rows = [f for f in comparison.figures if f.name != "LPIPS"]
    with pytest.raises(ValueError, match="cross-entropy of codes: expected 'LPIPS' .* found"):
        dataclasses.replace(comparison, figures=rows)
    gap = Figure("LPIPS", [Value(0.2, 0.01), None, Value(0.2, 0.01)])
    with pytest.raises(ValueError, match="expected 'LPIPS' of half and half too, found none"):
        dataclasses.replace(comparison, figures=[*rows, gap])


def test_a_row_is_not_beside_itself():
    row = Figure("a", [Value(1.0)], beside="a")
    with pytest.raises(ValueError, match="a: expected 'a' in the same table"):
        dataclasses.replace(toy(num=1), figures=[row])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"photos": toy_photos(3, 16)}, "expected a label per photo"),
        ({"photos": toy_photos(2, 8)}, "expected reconstructions as the photos"),
        ({"photos": torch.zeros(0, 3, 16, 16), "labels": []}, "photos: expected"),
        ({"photos": torch.zeros(2, 3, 16, 16, dtype=torch.uint8)}, "photos: expected floats"),
        ({"photos": torch.full((2, 3, 16, 16), torch.nan)}, "photos: expected finite"),
        ({"labels": ["one"]}, r"expected a label per photo \(2\), found 1"),
        ({"compared": []}, "expected at least one tokenizer, found none"),
        ({"figures": [Figure("f", [Value(1.0)])]}, r"f: expected a value or None per .* \(3\)"),
        ({"figures": [Figure("f", [None] * 3)] * 2}, "expected a name of its own"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(toy(), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": toy_photos(2, 8)}, "expected predictions as the photos"),
        ({"correct": torch.zeros(2, 4, 4)}, "expected correct as bool"),
        ({"correct": torch.zeros(2, 16, dtype=torch.bool)}, r"expected correct \(N, h, w\)"),
        ({"entropy": torch.zeros(2, 5, 5)}, "expected one shape of correct and entropy"),
        ({"entropy": torch.full((2, 4, 4), -1.0)}, "expected finite entropy"),
        ({"entropy": torch.zeros(3, 4, 4), "correct": None}, "expected entropy of 2 photos"),
        ({"predictions": None}, "expected predictions with correct and entropy"),
        ({"samples": torch.zeros(4, 16, 16)}, r"samples: expected \(N, 3, H, W\)"),
        ({"samples": toy_photos(5, 16)}, "expected samples of one number and size"),
        ({"name": "half and half"}, "expected a name of its own for each of the tokenizers"),
        ({"name": ""}, "expected a name of its own for each of the tokenizers"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(change, message):
    comparison = toy()
    with pytest.raises(ValueError, match=message):
        changed = dataclasses.replace(comparison.compared[0], **change)
        dataclasses.replace(comparison, compared=[changed, *comparison.compared[1:]])


@pytest.mark.parametrize("value", [(float("nan"), 0.1), (1.0, float("inf")), (1.0, -0.1)])
def test_figures_are_finite(value):
    with pytest.raises(ValueError, match="expected a finite value"):
        Figure("f", [Value(*value)])
    with pytest.raises(ValueError, match="expected"):
        Point("p", value[0], 1.0, value[1])


def test_words_that_mean_no_direction_are_refused():
    with pytest.raises(ValueError, match="expected higher, lower or None, found 'up'"):
        Figure("f", [], better="up")


def test_a_tokenizer_alone_needs_no_transformer():
    comparison = toy(num=1)
    bare = Compared("bare", "no transformer", comparison.compared[0].reconstructions)
    page = comparison_html(Comparison("t", "l", comparison.photos, comparison.labels, [bare]))
    text = Reader(page).text
    assert "teacher-forced" not in text and "entropy" not in text
    for absent in ("Figures", "Plots", "Samples", "How these numbers"):
        assert absent not in text


@pytest.mark.parametrize(
    "points",
    [
        [("a", 1.0, 1.0, None, None)],
        [("a", 0.0, 0.0, 0.0, 0.0), ("b", 0.0, 0.0, None, None)],
        [("a", 1e9, -1e-9, 1e8, 1e-9), ("b", 3e9, 1e-9, None, None)],
        [("a" * 99, 0.0, 0.0, None, None), ("b" * 99, 1e-7, 0.0, None, None)],
    ],
)
def test_any_points_make_a_plot(points):
    page = comparison_html(
        dataclasses.replace(
            toy(num=1), scatters=[Scatter("t", "x", "y", [Point(*p) for p in points])]
        )
    )
    numbers = [
        float(v)
        for tag, attrs in Reader(page).tags
        if tag in ("line", "circle", "text")
        for k, v in attrs.items()
        if k in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy")
    ]
    assert all(-1 <= n <= 361 for n in numbers)
    assert sum(tag == "circle" for tag, _ in Reader(page).tags) == len(points)


def test_a_plot_without_points_is_refused():
    with pytest.raises(ValueError, match="expected at least one point"):
        Scatter("t", "x", "y", [])


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with working_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "a b#c?.html"  # an address must be quoted
    write_comparison(path, toy(num=3, photos=2, size=48, grid=8))
    return path


def choose(browser: Browser, view: str) -> None:
    browser.evaluate(
        "(() => { const view = document.querySelector('.tools select');"
        f"view.value = '{view}'; view.dispatchEvent(new Event('change')) }})()"
    )
    browser.wait("[...document.images].every((x) => x.complete && x.naturalWidth)")


# what the sliders of a photo really cut off the left of their upper picture, in percent
SPLIT = (
    "[...document.querySelectorAll('.photo')[%d].querySelectorAll('.stage .frame.right')]"
    ".map((x) => parseFloat(getComputedStyle(x).clipPath.split(' ').at(-1)))"
)


def split(browser: Browser, photo: int = 0) -> list[float]:
    return browser.evaluate(SPLIT % photo)


@pytest.mark.slow
@needs_browser
class TestInBrowser:
    @pytest.mark.parametrize("view", ["", "original reconstruction", "reconstruction prediction"])
    @pytest.mark.parametrize("width", [320, 360, 400, 768, 1280])
    def test_page_fits_the_window(self, browser, page, width, view):
        browser.open(page, width)
        choose(browser, view)
        assert browser.evaluate("innerWidth") == width
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate("[...document.images].every((x) => x.naturalWidth > 0)")
        assert browser.requests == [page.as_uri()]
        assert browser.errors == []

    def test_the_mouse_moves_every_divider_of_its_photo(self, browser, page):
        browser.open(page, 1280)
        choose(browser, "original reconstruction")
        assert split(browser) == [50, 50, 50]
        browser.drag(".stage", 0.5, 0.2)
        assert split(browser) == [20, 20, 20]
        assert split(browser, photo=1) == [50, 50, 50]
        browser.drag(".stage", 0.2, 1.4)
        assert split(browser) == [100, 100, 100]

    def test_the_keyboard_moves_the_divider(self, browser, page):
        browser.open(page, 1280)
        choose(browser, "reconstruction prediction")
        browser.evaluate("document.querySelector('.photo input').focus()")
        browser.press("ArrowRight")
        assert split(browser) == [51, 51, 51]
        browser.press("Home")
        assert split(browser) == [0, 0, 0]
        words = browser.evaluate(
            "['aria-label', 'aria-valuetext'].map("
            "(x) => document.querySelector('.photo input').getAttribute(x))"
        )
        assert words[0].startswith("Divider of reconstruction and prediction: pixels only, photo 1")
        assert words[1] == "0 % reconstruction, 100 % prediction"
        browser.press("Tab")
        browser.press("End")
        assert split(browser) == [100, 100, 100]

    def test_a_finger_moves_the_divider(self, browser, page):
        browser.open(page, 360, touch=True)
        choose(browser, "original prediction")
        browser.swipe(".stage", 0.5, 0.75)
        browser.wait(f"Math.abs({SPLIT % 0}[0] - 75) <= 1")
        browser.swipe(".stage", 0.25, 0.25)  # a tap
        browser.wait(f"Math.abs({SPLIT % 0}[0] - 25) <= 1")
        assert browser.errors == []

    def test_a_finger_that_scrolls_moves_no_divider(self, browser, page):
        browser.open(page, 360, touch=True)
        choose(browser, "original prediction")
        browser.box(".stage")
        before = browser.evaluate("scrollY")
        browser.swipe(".stage", 0.8, 0.8, down=-200)
        browser.wait(f"scrollY > {before} + 100")
        assert split(browser) == [50, 50, 50]

    def test_the_chosen_pair_is_what_one_sees(self, browser, page):
        browser.open(page, 1280)
        choose(browser, "original prediction")
        browser.drag(".stage", 0.5, 0.3)
        choose(browser, "reconstruction prediction")
        assert split(browser) == [30, 30, 30]  # stays where it was
        alts = browser.evaluate(
            "[...document.querySelector('.stage').querySelectorAll('.shown')].map((x) => x.alt)"
        )
        assert [alt.split()[0] for alt in alts] == ["reconstruction", "prediction"]
        choose(browser, "")
        assert browser.evaluate("document.querySelectorAll('.stage').length") == 0
        assert browser.evaluate("document.querySelector('.pictures').offsetHeight") > 50

    @pytest.mark.parametrize("view", ["", "reconstruction prediction"])
    def test_buttons_lay_maps_over_the_predictions(self, browser, page, view):
        browser.open(page, 1280)
        choose(browser, view)
        shown = (
            "[...document.querySelectorAll('.map')].filter((x) => x.offsetParent"
            " && getComputedStyle(x).display === 'block').map((x) => x.className)"
        )
        assert browser.evaluate(shown) == []
        browser.click("button[value=accuracy]")
        assert browser.evaluate(shown) == ["map accuracy"] * 6
        assert browser.evaluate("!!document.querySelector('.legend.accuracy').offsetHeight")
        browser.click("button[value=entropy]")
        assert browser.evaluate(shown) == ["map entropy"] * 6
        pressed = "[...document.querySelectorAll('button')].map((x) => x.ariaPressed)"
        assert browser.evaluate(pressed) == ["false", "true"]
        opacity = "Number(getComputedStyle(document.querySelector('.map')).opacity)"
        assert 0.3 < browser.evaluate(opacity) < 0.9
        same = (
            "[...document.querySelectorAll('.map.entropy')].filter((x) => x.offsetParent).every("
            "(x) => { const a = x.getBoundingClientRect(), b = x.parentNode.querySelector("
            "'.shown').getBoundingClientRect(); return a.top === b.top && a.left === b.left &&"
            "a.width === b.width && a.height === b.height })"
        )
        assert browser.evaluate(same)
        browser.click("button[value=entropy]")
        assert browser.evaluate(shown) == []

    def test_maps_cannot_be_asked_for_where_no_prediction_shows(self, browser, page):
        browser.open(page, 1280)
        disabled = "[...document.querySelectorAll('button')].map((x) => x.disabled)"
        choose(browser, "original reconstruction")
        assert browser.evaluate(disabled) == [True, True]
        choose(browser, "original prediction")
        assert browser.evaluate(disabled) == [False, False]

    def test_wide_tables_scroll_in_their_box(self, browser, page):
        browser.open(page, 360)
        box = "document.querySelector('.wide')"
        assert browser.evaluate(f"{box}.scrollWidth > {box}.clientWidth")
        browser.evaluate(f"{box}.focus()")
        browser.press("ArrowRight")
        browser.wait(f"{box}.scrollLeft > 0")
        first = "document.querySelector('.figures tbody th').getBoundingClientRect()"
        assert browser.evaluate(f"{first}.left >= 0 && {first}.width <= 144"), "it stays in view"
        hint = f"getComputedStyle({box}, '::before').content"
        assert "scroll" in browser.evaluate(hint)
        browser.open(page, 1280)
        assert "scroll" not in browser.evaluate(hint)

    def test_everything_else_is_there_without_scripts(self, browser, page):
        browser.open(page, 360, scripts=False)
        assert browser.evaluate("document.querySelector('.tools').offsetHeight") == 0
        sizes = "[...document.querySelectorAll('.shown')].map((x) => x.offsetWidth)"
        assert len(browser.evaluate(sizes)) == 2 * 7
        assert min(browser.evaluate(sizes)) > 100
        assert browser.evaluate("document.querySelectorAll('table tr').length") == 11 + 4
        assert browser.evaluate("document.documentElement.scrollWidth") <= 360

    def test_pixels_stay_sharp_and_words_large_enough(self, browser, page):
        browser.open(page, 1280)
        style = "getComputedStyle(document.querySelector('.original img'))"
        assert browser.evaluate(f"{style}.imageRendering") == "pixelated"
        assert browser.evaluate(f"parseFloat({style}.width)") == 144  # three times 48
        smallest = (
            "Math.min(...[...document.querySelectorAll('p,td,th,small,figcaption,h4,.tag')]"
            ".map((x) => parseFloat(getComputedStyle(x).fontSize)))"
        )
        assert browser.evaluate(smallest) >= 12.5
        browser.open(page, 360)
        scale = "(() => { const x = document.querySelector('svg'); return x.clientWidth / 360 })()"
        assert 12 * browser.evaluate(scale) > 10  # the ticks

    @pytest.mark.parametrize("dark", [False, True])
    def test_words_stand_out_from_the_paper(self, browser, page, dark):
        browser.open(page, 1280, dark=dark)
        colours = browser.evaluate(
            "['body', 'small', 'a', '.best .value'].map((x) => { const s = getComputedStyle("
            "document.querySelector(x)); return [s.color, s.backgroundColor] })"
        )
        paper = colours[0][1]
        for colour, behind in colours:
            assert contrast(colour, paper if behind == "rgba(0, 0, 0, 0)" else behind) >= 4.5

    def test_a_tokenizer_without_predictions_keeps_its_picture(self, browser, tmp_path):
        whole = toy(num=2)
        bare = Compared("bare", "", whole.compared[1].reconstructions)
        path = tmp_path / "page.html"
        compared = [whole.compared[0], bare]
        write_comparison(path, Comparison("t", "l", whole.photos, whole.labels, compared))
        browser.open(path, 360)
        choose(browser, "reconstruction prediction")
        assert browser.evaluate("document.querySelectorAll('.stage').length") == 2
        assert browser.evaluate(
            "document.querySelectorAll('.pair')[1].querySelector('.pictures').offsetHeight > 50"
        )
        assert browser.errors == []


def contrast(colour: str, behind: str) -> float:
    """The ratio of WCAG 2; 4.5 is what small text needs."""

    def light(words: str) -> float:
        parts = [int(x) / 255 for x in re.findall(r"\d+", words)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(colour), light(behind)))
    return (high + 0.05) / (low + 0.05)
