"""The trace page in a real browser: keyboard, themes, phone width, no network, and no script but its own."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrag_jax.retrieve.trace import write_trace
from qrag_jax.retrieve.types import Candidate, Pick, Step

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (the test extra)")

pytestmark = pytest.mark.slow

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync", "--window-size=1280,900")
HOSTILE = "</script><script>document.title = 'broken'</script><img src=http://127.0.0.1:9/x> The end."
ACTIVE, SHOWN = (
    "return document.activeElement.id",
    "return [...document.querySelectorAll('.panel')].filter(p => p.offsetParent).map(p => p.id)",
)
PAPER = "return getComputedStyle(document.body).backgroundColor"


def make_page(path: Path) -> Path:
    texts = ("Daniel grabbed the milk there.", "Daniel travelled to the bathroom.", HOSTILE)
    chunks, qs = (31, 97, 118), (0.94, 0.88, 0.2)
    curve = np.linspace(-0.2, 0.2, 48, dtype=np.float32)
    curve[[9, 29]] = 0.94, np.nan
    steps = [
        Step(t, Pick(chunks[t], texts[t], qs[t], 1.0), (Candidate(5, "A runner-up. " * 20, 0.1),), t == 2, 0.01, curve) for t in range(3)
    ]
    return write_trace(
        path,
        question="Where is the milk?",
        steps=steps,
        chunks=160,
        threshold=0.4,
        positions="relative",
        source="story.txt",
        support=(31, 97),
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_page(tmp_path_factory.mktemp("trace") / "trace.html").as_uri()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield started
    started.quit()


@pytest.fixture
def browser(chromium: Any, page: str) -> Any:
    """The page, freshly loaded."""
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "light"}]})
    chromium.get("about:blank")
    for log in ("browser", "performance"):
        chromium.get_log(log)
    chromium.get(page)
    return chromium


def soon(read: Callable[[], Any], wanted: Any) -> None:
    """Waits until the page shows it: a change of theme or a move of the pointer shows one frame later."""
    for _ in range(200):
        if read() == wanted:
            return
        time.sleep(0.05)
    assert read() == wanted


def press(browser: Any, *keys: str) -> None:
    webdriver.ActionChains(browser).send_keys(*keys).perform()


def test_the_page_asks_for_nothing_and_complains_of_nothing(browser, page):
    browser.find_element("css selector", "#tab-3").click()
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if not url.startswith("data:")} == {page}
    assert browser.title.startswith("Where is the milk?")
    assert HOSTILE in browser.find_element("css selector", "#step-3 blockquote").text


def test_the_policy_refuses_network_and_foreign_scripts(browser):
    refused = browser.execute_async_script("""
        const done = arguments[0], seen = [];
        addEventListener("securitypolicyviolation", (event) => {
            seen.push(event.effectiveDirective);
            if (seen.length === 3) done(seen.sort());
        });
        new Image().src = "http://127.0.0.1:9/x.png";
        fetch("http://127.0.0.1:9/").catch(() => 0);
        document.head.append(Object.assign(document.createElement("script"), { textContent: "document.title = 'broken'" }));
    """)
    assert refused == ["connect-src", "img-src", "script-src-elem"]
    assert browser.title.startswith("Where is the milk?")


def test_steps_are_tabs_for_the_keyboard(browser):
    keys = webdriver.Keys
    assert browser.execute_script(SHOWN) == ["step-1"]
    browser.find_element("css selector", "#tab-1").click()
    moves = [(keys.ARROW_RIGHT, 2), (keys.ARROW_RIGHT, 3), (keys.ARROW_RIGHT, 1), (keys.ARROW_LEFT, 3), (keys.HOME, 1), (keys.END, 3)]
    for key, step in [*moves, (keys.ARROW_UP, 2)]:
        press(browser, key)
        soon(lambda: browser.execute_script(ACTIVE), f"tab-{step}")
        assert browser.execute_script(SHOWN) == [f"step-{step}"]
        selected = browser.execute_script("return [...document.querySelectorAll('[role=tab][aria-selected=true]')].map(tab => tab.id)")
        assert selected == [f"tab-{step}"]
        assert browser.execute_script("return [...document.querySelectorAll('.row.on')].map(row => row.dataset.step)") == [str(step - 1)]


def test_tab_reaches_everything_and_focus_is_seen(browser):
    reached = []
    for _ in range(5):
        press(browser, webdriver.Keys.TAB)
        reached.append(
            browser.execute_script(
                "const e = document.activeElement; return [e.id || e.className || e.tagName, getComputedStyle(e).outlineStyle]"
            )
        )
    assert reached == [[name, "solid"] for name in ("theme", "tab-1", "step-1", "plot reading", "SUMMARY")]


def test_a_curve_is_read_by_keys_and_by_pointer(browser):
    readout = browser.find_element("css selector", "#step-1 .readout")
    plot = browser.find_element("css selector", "#step-1 .plot")
    for _ in range(4):
        press(browser, webdriver.Keys.TAB)
    # Of 48 stretches of 160 chunks, the tenth begins at 9 * 160 // 48 = 30 and the next at 33; the first has chunks 0 to 2.
    soon(lambda: readout.text, "chunks 30 to 32: Q 0.940")
    press(browser, webdriver.Keys.HOME)
    soon(lambda: readout.text, "chunks 0 to 2: Q −0.200")
    assert plot.get_attribute("aria-valuetext") == readout.text
    # The 30th, chunks 29 * 160 // 48 = 96 to 99: its middle lies 29.5/48 - 1/2 of the width right of the plot's middle.
    webdriver.ActionChains(browser).move_to_element_with_offset(plot, round(plot.size["width"] * (29.5 / 48 - 0.5)), 0).perform()
    soon(lambda: readout.text, "chunks 96 to 99: nothing left to pick")


def test_dark_and_light(browser):
    light = browser.execute_script(PAPER)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    dark = browser.execute_script(PAPER)
    assert dark != light
    toggle = browser.find_element("css selector", "#theme")
    soon(lambda: toggle.text, "Light theme")
    toggle.click()
    soon(lambda: (browser.execute_script(PAPER), toggle.text), (light, "Dark theme"))


def test_a_phone_scrolls_one_way_only(browser):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True})
    try:
        assert browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_without_scripts_every_step_is_shown(browser, page):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(page)
        text = browser.execute_cdp_cmd("Runtime.evaluate", {"expression": "document.body.innerText"})["result"]["value"]
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    for words in ("Daniel grabbed the milk there.", "Daniel travelled to the bathroom.", HOSTILE, "the search would stop here"):
        assert words in text
    assert "Dark theme" not in text
