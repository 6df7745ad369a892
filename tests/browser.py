"""A real browser for tests: Chromium without a window, driven over a pipe (DevTools protocol).

No driver and no package is needed, only the browser itself:
    with Browser() as browser:
        browser.open(path, width=360)
        browser.click("#button")
Every request, error and console message of a page is kept: see `errors` and `requests`.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = (
    "chromium",
    "google-chrome",
    "google-chrome-stable",
    "chromium-browser",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
TIMEOUT = 60.0
OPTIONS = (
    "--headless",
    "--no-sandbox",  # in a container it has none; we show it our own files only
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-pipe",
)
# the browser reads descriptor 3 and writes descriptor 4
PIPE = 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1'
KEYS = {
    "ArrowLeft": 37,
    "ArrowRight": 39,
    "Home": 36,
    "End": 35,
    "Tab": 9,
    "Enter": 13,
    "ArrowUp": 38,
}


def find_browser() -> str | None:
    if os.name == "nt":
        return None  # the pipe below is a POSIX shell's
    return next(filter(None, map(shutil.which, NAMES)), None)


needs_browser = pytest.mark.skipif(
    find_browser() is None,
    reason="no browser found: install Chromium (apt install chromium) or Google Chrome",
)


@contextmanager
def working_browser(folder: Path) -> Iterator["Browser"]:
    """A browser that shows a file in `folder`; else the test is skipped, not failed.

    A snap's browser may see another /tmp than we do, and a stub on the PATH is no browser.
    """
    page = folder / "hello.html"
    page.write_text("<title>hello</title>")
    try:
        browser = Browser()
    except (AssertionError, OSError) as error:
        pytest.skip(f"{find_browser()} does not start ({error})")
    with browser:
        browser.open(page, 500)
        if browser.evaluate("document.title") != "hello":
            pytest.skip(f"{find_browser()} cannot read {folder}: install one that is no snap")
        yield browser


class Browser:
    """One browser with one page at a time."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []  # addresses; images inside the page are none
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._left, self._last, self._session = b"", 0, ""
        binary = find_browser()
        assert binary is not None
        command = ["sh", "-c", PIPE, "sh", binary, *OPTIONS]
        command.append(f"--user-data-dir={self._profile.name}")
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._session = ""
            self.call("Browser.close")
            self._process.wait(10)
        except (OSError, subprocess.TimeoutExpired, AssertionError):
            self._process.kill()
        self._process.communicate()
        self._profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; its result."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        while (answer := self._receive()).get("id") != self._last:
            self._keep(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        handle, until = self._process.stdout.fileno(), time.monotonic() + TIMEOUT
        while b"\0" not in self._left:
            ready, _, _ = select.select([handle], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"the browser has not answered for {TIMEOUT:g} s"
            chunk = os.read(handle, 1 << 20)
            assert chunk, "the browser has ended"
            self._left += chunk
        message, self._left = self._left.split(b"\0", 1)
        return json.loads(message)

    def _keep(self, event: dict[str, Any]) -> None:
        method, found = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(found["exceptionDetails"]))
        if method == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning"):
            self.errors.append(json.dumps(found["args"]))
        if method == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            self.errors.append(json.dumps(found["entry"]))
        if method == "Network.requestWillBeSent":
            address = found["request"]["url"]
            if not address.startswith("data:"):
                self.requests.append(address)

    def open(
        self,
        page: Path | str,
        width: int,
        height: int = 800,
        dark: bool = False,
        scripts: bool = True,
        touch: bool = False,
    ) -> None:
        """Show a file or an address in a window of that many CSS pixels, with all its images."""
        self.errors.clear()
        self.requests.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=touch,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        address = page if isinstance(page, str) else page.resolve().as_uri()
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")
        self.wait("[...document.images].every((x) => x.complete)")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, of a promise what it brings."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        until = time.monotonic() + TIMEOUT
        while not self.evaluate(expression):
            assert time.monotonic() < until, f"never became true: {expression}"
            time.sleep(0.02)

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element, scrolled to the middle of the window."""
        left, top, width, height = self.evaluate(
            f"(() => {{ const x = document.querySelector({json.dumps(selector)});"
            "x.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const b = x.getBoundingClientRect(); return [b.left, b.top, b.width, b.height] })()"
        )
        return left, top, width, height

    def click(self, selector: str) -> None:
        self.drag(selector, 0.5, 0.5)

    def drag(self, selector: str, start: float, end: float) -> None:
        """The mouse pressed at one share of an element's width, let go at another."""
        self.drag_across(selector, (start, 0.5), (end, 0.5))

    def drag_across(
        self, selector: str, start: tuple[float, float], end: tuple[float, float]
    ) -> None:
        """The mouse pressed at shares of an element's width and height, let go at others."""
        left, top, width, height = self.box(selector)
        for step in range(6):
            share = min(step, 4) / 4
            x, y = (a + (b - a) * share for a, b in zip(start, end))
            kind = {0: "mousePressed", 5: "mouseReleased"}.get(step, "mouseMoved")
            self._mouse(kind, left + x * width, top + y * height)

    def choose_file(self, selector: str, path: Path) -> None:
        """A file for an upload field, as its dialogue would bring it."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path.resolve())])

    def _mouse(self, kind: str, x: float, y: float) -> None:
        button = {"button": "left", "clickCount": 1, "buttons": int(kind != "mouseReleased")}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def swipe(self, selector: str, start: float, end: float, down: float = 0.0) -> None:
        """A finger from one share of an element's width to another, and `down` by pixels."""
        left, top, width, height = self.box(selector)
        self.wait("new Promise((done) => requestAnimationFrame(() => done(true)))")
        for step in range(11):
            x = left + (start + (end - start) * step / 10) * width
            y = top + height / 2 + down * step / 10
            self._touch("touchMove" if step else "touchStart", [{"x": x, "y": y}])
        self._touch("touchEnd", [])

    def _touch(self, kind: str, points: list[dict[str, float]]) -> None:
        self.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    def press(self, key: str) -> None:
        """One key, as typed."""
        for kind in ("rawKeyDown", "keyUp"):
            code = {"windowsVirtualKeyCode": KEYS[key], "key": key, "code": key}
            self.call("Input.dispatchKeyEvent", type=kind, **code)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))
