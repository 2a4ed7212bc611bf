"""The page in a real browser: asking, the steps as they come, citations, hostile texts, the policy, the keyboard, both widths."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from qrag_jax import Index, Retriever, Text
from qrag_jax.serve.app import make_app
from qrag_jax.serve.guard import Access
from qrag_jax.serve.limits import Limits
from qrag_jax.serve.service import Service
from tests.support.index import small_retriever
from tests.support.serving import SlowReader

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (the test extra)")

pytestmark = [pytest.mark.slow, pytest.mark.quick]

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync", "--window-size=1280,900")
KEY = "a key of 16 signs".replace(" ", "-")
HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script> the end"
TEXTS = [
    Text("Mary went to the garden.", "a.pdf", {"page": 3}),
    Text(HOSTILE, '"><b>x</b>.html', {"heading": "<i>Rest</i>"}),
    Text("John slept " * 90, "c.txt"),
]
PHONE = {"width": 375, "height": 812, "deviceScaleFactor": 2, "mobile": True}


@pytest.fixture(scope="module")
def go() -> threading.Semaphore:
    return threading.Semaphore(0)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, go: threading.Semaphore) -> Iterator[str]:
    """The address of a server in a thread."""
    retriever: Retriever = small_retriever()
    index = Index.build(retriever, TEXTS, tmp_path_factory.mktemp("page") / "index")
    reader = SlowReader("In the <b>garden</b> ", "[1][7]. ", "Really [2].", go=go)
    with Service(index, retriever, reader, Limits(budget=3)) as service, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(make_app(service, Access(key=KEY)), log_config=None, lifespan="on", http="h11", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        soon(lambda: server.started, True)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
        server.should_exit = True
        thread.join(20)


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


@pytest.fixture(params=["desktop", "phone"])
def browser(chromium: Any, page: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, freshly loaded, at one of two widths."""
    if request.param == "phone":
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    chromium.get("about:blank")
    for log in ("browser", "performance"):
        chromium.get_log(log)
    chromium.get(page)
    soon(lambda: len(chromium.find_elements("css selector", "#mode option")), 2)
    yield chromium
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def soon(read: Callable[[], Any], wanted: Any) -> None:
    for _ in range(400):
        if read() == wanted:
            return
        time.sleep(0.05)
    assert read() == wanted


def text(browser: Any, selector: str) -> str:
    return str(browser.execute_script("return document.querySelector(arguments[0]).textContent", selector))


def ask(browser: Any, question: str = "Where is Mary?", key: str = KEY) -> None:
    field = browser.find_element("css selector", "#key")
    field.clear()
    field.send_keys(key)
    asked = browser.find_element("css selector", "#question")
    asked.clear()
    asked.send_keys(question + webdriver.Keys.ENTER)


def test_steps_and_answer_come_one_after_another(browser: Any, page: str, go: threading.Semaphore) -> None:
    browser.execute_script("document.querySelector('#budget').value = 3")
    ask(browser)
    soon(lambda: len(browser.find_elements("css selector", "#steps > li")), 3)
    assert not browser.find_element("css selector", "#answer").is_displayed()
    go.release()
    soon(lambda: text(browser, "#text"), "In the <b>garden</b>")
    assert browser.find_element("css selector", "#cancel").is_displayed()
    go.release(2)
    soon(lambda: text(browser, "#text"), "In the <b>garden</b> [1]. Really [2].")
    soon(lambda: browser.find_element("css selector", "#cancel").is_displayed(), False)
    assert "[7]" in text(browser, "#cost")
    more = browser.find_element("css selector", ".more")
    heights = [browser.execute_script("arguments[0].click(); return document.querySelector('#steps').offsetHeight", more) for _ in range(2)]
    assert heights[0] > heights[1]
    places = [one.text for one in browser.find_elements("css selector", "#sources li")]
    assert [place[:3] for place in places] == ["[1]", "[2]"]
    browser.find_element("css selector", "#text .cite").click()
    focused = browser.execute_script("return [document.activeElement.id, document.activeElement.classList.contains('on')]")
    assert focused == [browser.find_element("css selector", "#text .cite").get_attribute("href").partition("#")[2], True]
    whole = browser.execute_script("return document.body.innerText")
    assert "<img src=x onerror=" in whole
    assert '"><b>x</b>.html, heading <i>Rest</i>' in whole
    assert browser.title == "Ask the documents"
    assert browser.execute_script("return document.querySelectorAll('main img, main b, main i:not(.bar i), main script').length") == 0
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {page, page + "health", page + "answer/stream"}
    assert browser.get_log("browser") == []


def test_what_goes_wrong_is_said(browser: Any) -> None:
    ask(browser, key="wrong")
    soon(lambda: "the key is wrong" in text(browser, "#problem"), True)
    browser.execute_script("const field = document.querySelector('#budget'); field.max = 99; field.value = 99")
    ask(browser)
    soon(lambda: text(browser, "#problem"), "budget = 99: must be at most 3, the most picks of a question here")
    assert not browser.find_element("css selector", "#search").is_displayed()


def test_a_search_can_be_stopped(browser: Any, go: threading.Semaphore) -> None:
    ask(browser)
    soon(lambda: len(browser.find_elements("css selector", "#steps > li")) > 0, True)
    browser.find_element("css selector", "#cancel").click()
    soon(lambda: text(browser, "#state"), "Stopped.")
    go.release(3)


def test_the_policy_refuses_foreign_scripts_and_addresses(browser: Any) -> None:
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
    assert browser.title == "Ask the documents"


def test_the_keyboard_reaches_everything_and_a_phone_scrolls_one_way(browser: Any) -> None:
    assert browser.execute_script("return document.activeElement.id") == "question"
    reached = []
    for _ in range(4):
        webdriver.ActionChains(browser).send_keys(webdriver.Keys.TAB).perform()
        reached.append(browser.execute_script("return [document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]"))
    assert reached == [[name, "solid"] for name in ("mode", "budget", "key", "ask")]
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    small = browser.execute_script(
        "return [...document.querySelectorAll('button, input, select, textarea')].filter(e => e.offsetParent && e.offsetHeight < 44).length"
    )
    assert small == 0


def test_the_page_of_addresses(chromium: Any, page: str) -> None:
    chromium.get(page + "docs")
    assert chromium.get_log("browser") == []
    assert "POST /search/stream" in chromium.execute_script("return document.body.innerText")
