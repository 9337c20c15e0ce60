"""The chat page in a real browser, driven through ChromeDriver's own HTTP protocol."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ENV = os.environ | {"DEVICE": "cpu", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    DRIVER is None or BROWSER is None,
    reason="needs a browser: apt-get install chromium chromium-driver",
)
ENTER, ESCAPE, TAB = "\ue007", "\ue00c", "\ue004"
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Page:
    """A browser with the page open."""

    def __init__(self, driver: str, url: str) -> None:
        self.driver, self.url = driver, url
        options = {"binary": BROWSER, "args": [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--window-size=1000,760"]}  # fmt: skip
        found = self._call("POST", "/session", {"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}})  # fmt: skip
        self.session = f"/session/{found['sessionId']}"
        self.do("POST", "/url", {"url": url})

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self.driver + path, data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as err:
            raise AssertionError(err.read().decode()[:500]) from err

    def do(self, method: str, path: str, body: Any = None) -> Any:
        return self._call(method, self.session + path, body)

    def js(self, script: str) -> Any:
        return self.do("POST", "/execute/sync", {"script": script, "args": []})

    def find(self, css: str) -> str:
        found = self.do("POST", "/element", {"using": "css selector", "value": css})
        return f"/element/{found[_ELEMENT]}"

    def click(self, css: str) -> None:
        self.do("POST", f"{self.find(css)}/click")

    def type(self, css: str, text: str) -> None:
        self.do("POST", f"{self.find(css)}/value", {"text": text})

    def press(self, key: str) -> None:
        """To whatever has the focus."""
        actions = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self.do("POST", "/actions", {"actions": [{"type": "key", "id": "k", "actions": actions}]})

    def texts(self, css: str) -> list[str]:
        return self.js(f"return [...document.querySelectorAll({css!r})].map(e => e.textContent)")

    def wait(self, script: str) -> Any:
        for _ in range(600):
            if found := self.js(f"return {script}"):
                return found
            time.sleep(0.1)
        raise AssertionError(f"never: {script}; {self.texts('body')}")

    def answered(self, count: int) -> list[str]:
        """Wait for so many messages and the end of the last one; their texts."""
        self.wait(f"document.querySelectorAll('article').length == {count} && "
                  "document.getElementById('stop').hidden")  # fmt: skip
        return self.texts("article p")

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.do("GET", "/screenshot")))


@pytest.fixture(scope="module")
def url(tiny_chat_dir: Path) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "mindspeed_llm.cli.main", "serve", "--load", str(tiny_chat_dir),
         "--port", "0", "--prompt-type", "chatml", "--max-new-tokens", "12", "--seq-length", "500"],
        cwd=ROOT, env=ENV, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    seen = ""
    for line in process.stderr:
        seen += line
        if found := re.search(r"listening at (http://\S+)", line):
            yield found[1]
            break
    else:
        pytest.fail(seen)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


@pytest.fixture(scope="module")
def browser(url: str) -> Iterator[Page]:
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
    port = "0"
    while port == "0":
        line = driver.stdout.readline()
        assert line, "ChromeDriver ends"
        found = re.search(r"on port (\d+)", line)
        port = found[1] if found else "0"
    opened = Page(f"http://127.0.0.1:{port}", url)
    yield opened
    opened.do("DELETE", "")
    driver.terminate()
    driver.wait(30)


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    browser.js("localStorage.clear()")
    browser.do("POST", "/url", {"url": browser.url})
    browser.wait("document.getElementById('model').textContent")
    yield browser
    problems = [entry for entry in browser.do("POST", "/se/log", {"type": "browser"})
                if entry["level"] == "SEVERE"]  # fmt: skip
    assert problems == [], "the policy or a script complained"


def test_a_conversation_by_keyboard(page: Page) -> None:
    assert page.js("return document.activeElement.id") == "message"
    page.type("#message", "hi" + ENTER)
    first = page.answered(2)
    assert first[0] == "hi" and first[1]
    page.type("#message", "and then?" + ENTER)
    assert len(page.answered(4)) == 4
    assert "cached" in page.texts("#status")[0] or "longest" in page.texts("#status")[0]
    page.click("article:last-child .actions button")  # regenerate
    again = page.answered(4)
    assert again[:3] == [*first, "and then?"] and again[3]
    page.click("article:first-child .actions button")  # edit
    assert page.js("return document.activeElement.id") == "edited"
    page.type("#edited", " there" + ENTER)
    assert page.answered(2)[0] == "hi there"
    page.do("POST", "/refresh")
    assert page.texts("article p")[0] == "hi there", "conversations stay in this browser"


def test_a_reply_can_be_stopped(page: Page) -> None:
    page.click("#settings summary")
    page.type("#limit", "450")
    page.type("#message", "tell me all" + ENTER)
    page.wait("document.querySelectorAll('article.assistant p')[0]?.textContent.length > 3")
    assert page.texts("#log[aria-busy=true]") != []
    page.press(ESCAPE)
    page.wait("document.getElementById('stop').hidden")
    assert page.texts("#status") == ["Stopped."] and len(page.texts("article")) == 2
    assert page.js("return document.getElementById('log').getAttribute('aria-busy')") is None


def test_several_conversations(page: Page) -> None:
    page.type("#message", "one" + ENTER)
    page.answered(2)
    page.click("#new")
    assert page.texts("article") == []
    page.type("#message", "two" + ENTER)
    page.answered(2)
    assert page.texts("#conversations li button:first-child") == ["two", "one"]
    page.click("#conversations li:last-child button")
    assert page.texts("article p")[0] == "one"
    page.click("#conversations li:last-child button:last-child")
    page.do("POST", "/alert/accept")
    page.wait("document.querySelectorAll('#conversations li').length == 1")
    assert page.texts("article p")[0] == "two"


def test_what_a_model_says_is_text(page: Page) -> None:
    """Markup in a message is shown, not obeyed."""
    page.js("""localStorage.setItem("mindspeed-llm.conversations", JSON.stringify({current: "x",
        list: [{id: "x", system: "", temperature: "", limit: "", messages: [
            {role: "user", content: "<b>x</b>"},
            {role: "assistant", content: "<img src=x onerror='window.broken=1'>"}]}]}))""")
    page.do("POST", "/refresh")
    assert page.texts("article p") == ["<b>x</b>", "<img src=x onerror='window.broken=1'>"]
    assert page.js("return document.querySelectorAll('article img, article b').length") == 0
    assert page.js("return window.broken === undefined")


def test_mistakes_are_said(page: Page) -> None:
    page.click("#settings summary")
    page.type("#limit", "9999")
    page.type("#message", "hi" + ENTER)
    said = page.wait("document.getElementById('alert').textContent")
    assert "more than the context of 500" in said
    # The browser logs the refused request itself; that is no complaint of the page.
    page.do("POST", "/se/log", {"type": "browser"})


def test_names_roles_and_focus(page: Page) -> None:
    """Every control has a name; the log announces; focus can be seen; all is reached by Tab."""
    page.type("#message", "hi" + ENTER)
    page.answered(2)
    unnamed = page.js("""
        const named = (e) =>
            e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim();
        return [...document.querySelectorAll("button, input, textarea, summary, nav, [role=log]")]
            .filter((e) => !named(e)).map((e) => e.outerHTML)""")
    assert unnamed == []
    log = "document.getElementById('log')"
    assert page.js(f"return [{log}.getAttribute('role'), {log}.ariaLive]") == ["log", "polite"]
    assert page.js("return document.documentElement.lang") == "en"
    page.js("document.body.focus(); document.activeElement.blur()")
    reached = set()
    for _ in range(20):
        page.press(TAB)
        reached.add(page.js("const e = document.activeElement; return e.id || e.textContent"))
        assert page.js(
            "const e = document.activeElement; "
            "return e === document.body || getComputedStyle(e).outlineStyle != 'none'"
        )
    assert {"new", "message", "send", "log", "Edit", "Regenerate"} <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_a_picture(page: Page, scheme: str, tmp_path: Path) -> None:
    """Text stands out at least 4.5 to 1 in both colour schemes (WCAG 2.2, 1.4.3)."""
    page.do("POST", "/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {
        "features": [{"name": "prefers-color-scheme", "value": scheme}]}})  # fmt: skip
    page.type("#message", "Please remember that I like pink roses." + ENTER)
    page.answered(2)
    least = page.js("""
        const light = (c) => { const [r, g, b] = c.match(/[0-9.]+/g).map((v) => v / 255)
            .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const ground = (e) => { for (; e; e = e.parentElement) {
            const c = getComputedStyle(e).backgroundColor;
            if (!c.startsWith("rgba")) return c; } return "rgb(255, 255, 255)"; };
        const shown = [...document.querySelectorAll("button, p, h1, h2, label, span, summary")]
            .filter((e) => e.textContent.trim() && e.offsetParent && !e.disabled);
        return Math.min(...shown.map((e) => {
            const two = [light(getComputedStyle(e).color), light(ground(e))];
            const [a, b] = two.sort((x, y) => y - x);
            return (a + 0.05) / (b + 0.05); }))""")
    assert least >= 4.5
    page.picture(Path(os.environ.get("PAGE_PICTURES", tmp_path)) / f"page-{scheme}.png")


def test_the_driver_sees_complaints(page: Page) -> None:
    """The check after each test is not blind: an inline script is refused and logged."""
    page.js("const s = document.createElement('script'); s.textContent = 'window.broken = 1';"
            "document.body.append(s)")  # fmt: skip
    logged = page.do("POST", "/se/log", {"type": "browser"})
    assert any("Content Security Policy" in entry["message"] for entry in logged)
    assert page.js("return window.broken === undefined")
