"""The live page in a real browser: upload, region, steps, samples; on a desk and on a phone."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semvq.serve.app import MAX_BYTES
from tests.browser import Browser, needs_browser, working_browser
from tests.serving import noise, serving, toy_runs

pytestmark = [pytest.mark.slow, needs_browser]

WIDTHS = {"desk": 1100, "phone": 360}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    runs = toy_runs(folder)
    with serving(runs, folder) as found:
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with working_browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def page(server, browser):
    """The page, open, with its first look."""
    show(server, browser)
    return browser


def show(server, browser: Browser, width: int = WIDTHS["desk"], **options: bool) -> None:
    browser.open(server.address, width, **options)
    wait_for_look(browser)


def wait_for_look(browser: Browser) -> None:
    browser.wait("document.querySelector('.look') && !looks.hasAttribute('aria-busy')")


def text(browser: Browser, selector: str) -> str:
    return browser.evaluate(f"document.querySelector('{selector}').textContent")


def sources(browser: Browser, selector: str) -> list[str]:
    return browser.evaluate(f"[...document.querySelectorAll('{selector}')].map((x) => x.src)")


def put(browser: Browser, selector: str, value: object) -> None:
    """As a user would change a field."""
    browser.evaluate(
        f"(() => {{ const x = document.querySelector('{selector}'); x.value = '{value}';"
        "x.dispatchEvent(new Event('input', {bubbles: true}));"
        "x.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def submit(browser: Browser, section: str) -> None:
    browser.evaluate(f"document.querySelector('#{section} .steps').replaceChildren()")
    browser.box(f"#{section} form button")  # in sight, and at rest in the next frame
    browser.wait("new Promise((done) => requestAnimationFrame(() => done(true)))")
    browser.click(f"#{section} form button")
    browser.wait(f"!document.querySelector('#{section} form button').disabled")


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_everything_fits_its_width_and_nothing_is_fetched_elsewhere(server, browser, width):
    show(server, browser, width, touch=width < 500)
    submit(browser, "repaint")
    submit(browser, "sample")
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    narrow = browser.evaluate(
        "[...document.querySelectorAll('main button, main input, main select')]"
        ".filter((x) => x.offsetParent).filter((x) => x.getBoundingClientRect().right > innerWidth)"
        ".map((x) => x.outerHTML)"
    )
    assert not narrow and not browser.errors
    assert all(address.startswith(server.address) for address in browser.requests)


@pytest.mark.parametrize("width", [360, 500, 641, 1200])
def test_photo_and_repainted_are_of_one_size_and_no_button_stands_alone(server, browser, width):
    show(server, browser, width)
    put(browser, "#sample [name=drawer]", 1)
    submit(browser, "repaint")
    assert browser.box("#region img")[2:] == browser.box("#repaint .results img")[2:]
    bottoms = browser.evaluate(
        "[...document.querySelectorAll('#sample form > :not([hidden])')]"
        ".map((x) => Math.round(x.getBoundingClientRect().bottom))"
    )
    assert len(bottoms) == 9 and bottoms[-1] == bottoms[-2]


def test_a_packaged_photo_is_chosen_with_its_pictures(page):
    before = sources(page, ".look img")
    page.click("#photos button:nth-child(9)")
    page.wait("document.querySelectorAll('#photos button')[8].ariaPressed === 'true'")
    wait_for_look(page)
    page.wait(f"document.querySelector('.look img').src !== '{before[0]}'")
    captions = page.evaluate(
        "[...document.querySelectorAll('.look figcaption')].map(x=>x.innerText)"
    )
    assert captions == ["photo", "codes", "reconstruction", "prediction", "surprise"]
    assert "top-1 accuracy" in text(page, ".look .note")
    assert len(text(page, ".look .numbers").splitlines()) == 4
    assert not page.errors


def test_a_photo_of_one_s_own_is_uploaded_repainted_and_never_kept(page, tmp_path):
    Image.fromarray(noise()).save(tmp_path / "mine.png")
    packaged = sources(page, ".look img")[0]
    page.choose_file("#upload", tmp_path / "mine.png")
    page.wait(f"document.querySelector('.look img').src !== '{packaged}'")
    assert text(page, "#photo-name") == "mine.png: its centre square"
    page.drag_across("#region", (0.52, 0.98), (0.98, 0.02))
    edges = page.evaluate("['x0', 'y0', 'x1', 'y1'].map((x) => document.getElementById(x).value)")
    assert edges == ["52", "2", "98", "98"]
    submit(page, "repaint")
    assert text(page, "#repaint output") == "step 8 of 8: 16 of 16 places fixed"
    put(page, "#repaint .player input", 0)
    assert text(page, "#repaint output") == "step 0 of 8: 8 of 16 places fixed"
    assert not page.errors


def test_the_region_can_be_set_by_keyboard_and_a_wrong_one_gets_one_line(page):
    for name, value in {"x0": 0, "y0": 0, "x1": 24, "y1": 24}.items():
        put(page, f"#{name}", value)
    page.evaluate("document.getElementById('y1').focus()")
    page.press("ArrowUp")
    assert page.evaluate("document.querySelector('#region .box').style.height") == "25%"
    submit(page, "repaint")
    put(page, "#repaint .player input", 0)
    assert text(page, "#repaint output") == "step 0 of 1: 15 of 16 places fixed"
    put(page, "#x0", 60)
    page.click("#repaint form button")
    page.wait("!document.querySelector('#repaint .error').hidden")
    assert "found 60 to 24 and 0 to 25; drag a box" in text(page, "#repaint .error")
    assert not page.errors


def test_steps_are_shown_by_slider_by_keyboard_and_by_playing(page):
    put(page, "#sample [name=drawer]", 1)
    put(page, "#sample [name=steps]", 5)
    put(page, "#sample [name=class]", "red")
    submit(page, "sample")
    last = sources(page, "#sample .results img")
    assert len(last) == 4 and len(set(last)) > 1
    page.evaluate("document.querySelector('#sample .player input').focus()")
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    assert text(page, "#sample output").startswith("step 3 of 5: ")
    assert sources(page, "#sample .results img") != last
    hatching = "document.querySelector('#sample canvas').toDataURL()"
    hatched = page.evaluate(hatching)
    put(page, "#sample .player input", 5)
    assert page.evaluate(hatching) != hatched
    page.click("#sample .player button")
    page.wait("document.querySelector('#sample output').textContent.startsWith('step 2 of 5')")
    page.wait("document.querySelector('#sample output').textContent.startsWith('step 5 of 5')")
    page.wait("document.querySelector('#sample .player button').textContent === 'Play'")
    assert sources(page, "#sample .results img") == last
    assert not page.errors


def test_the_same_seed_draws_the_same_and_ar_has_no_steps(page):
    put(page, "#sample [name=drawer]", 0)
    assert page.evaluate("document.querySelector('#sample [name=steps]').disabled")
    found = []
    for seed in (3, 4, 3):
        put(page, "#sample [name=seed]", seed)
        submit(page, "sample")
        found.append(sources(page, "#sample .results img"))
    assert found[0] == found[2] != found[1]
    assert page.evaluate("document.querySelector('#sample .player')") is None
    assert not page.errors


def test_mistakes_are_said_on_the_page_and_a_good_photo_clears_them(page, tmp_path: Path):
    put(page, "#photo-class", "red")
    wait_for_look(page)
    packaged = sources(page, ".look img")[0]
    (tmp_path / "text.png").write_text("no image")
    page.choose_file("#upload", tmp_path / "text.png")
    page.wait("!document.querySelector('#photo .error').hidden")
    assert text(page, "#photo .error").startswith("text.png: expected JPEG, PNG")
    assert sources(page, ".look img")[0] == packaged
    assert page.evaluate("document.querySelector('#photo-class').value") == "red"
    submit(page, "repaint")  # of the photo that is still shown
    assert page.evaluate("document.querySelector('#repaint .error').hidden")
    (tmp_path / "huge.png").write_bytes(bytes(MAX_BYTES + 1))
    page.choose_file("#upload", tmp_path / "huge.png")
    page.wait("document.querySelector('#photo .error').textContent.startsWith('huge.png')")
    assert "expected at most 16 MB, found 16.0 MB" in text(page, "#photo .error")
    Image.fromarray(np.tile(noise(), (9, 9, 1))).save(tmp_path / "good.jpg")
    page.choose_file("#upload", tmp_path / "good.jpg")
    page.wait("document.querySelector('#photo .error').hidden")
    wait_for_look(page)
    assert text(page, "#photo-name").startswith("good.jpg")
    (refusal,) = page.errors  # the browser's own note of the first answer
    assert "400 (Bad Request)" in refusal
