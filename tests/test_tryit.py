"""The try-it page: its routes in memory, and the page in a real browser against a real server."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from playwright.sync_api import Locator, Page, expect
from starlette.applications import Starlette
from starlette.routing import Mount, WebSocketRoute
from starlette.testclient import TestClient

from chatserver import EchoEndpoint, docs_routes
from chatserver.app import create_app
from chatserver.settings import Settings
from tests.browser import Server, Visit, axe_source, running

pytest_plugins = ["tests.browser"]

TRIED = "tests.tried:app"
PHONE: dict[str, Any] = {"has_touch": True, "is_mobile": True}
FILES = ("/docs", "/docs/asyncapi.json", "/docs/static/docs/page.js")


def own(**options: Any) -> Starlette:
    app = Starlette(routes=[WebSocketRoute("/ws", EchoEndpoint)])
    app.router.routes.extend(docs_routes(app, **options))
    return app


# Its routes


@pytest.mark.parametrize("app", [own(), create_app(Settings())], ids=["own", "ready"])
@pytest.mark.parametrize("path", FILES)
def test_what_is_served_has_the_pages_headers(app: Starlette, path: str) -> None:
    response = TestClient(app).get(path)
    assert response.status_code == 200
    assert "script-src 'self'" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"x-forwarded-for": "203.0.113.9"}])
def test_only_for_this_machine_unless_it_is_public(path: str, headers: dict[str, str]) -> None:
    for app in (own(), create_app(Settings())):
        refused = TestClient(app).get(path, headers=headers)
        assert refused.status_code == 403
        assert "public=True" in refused.text
        assert "CHATSERVER_DOCS=on" in refused.text
    for app in (own(public=True), create_app(Settings(docs="on"))):
        assert TestClient(app).get(path, headers=headers).status_code == 200


def test_the_ready_application_links_to_it_where_it_is_shown() -> None:
    def shows(docs: str, host: str = "localhost") -> bool:
        client = TestClient(create_app(Settings(docs=docs)))
        return 'href="/docs"' in client.get("/", headers={"host": host}).text

    assert [shows("local"), shows("on"), shows("off")] == [True, True, False]
    assert [shows("local", "evil.example"), shows("on", "evil.example")] == [False, True]


def test_the_ready_application_may_have_none() -> None:
    client = TestClient(create_app(Settings(docs="off")))
    assert client.get("/docs").status_code == 404


def test_a_path_that_is_taken_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'/docs' is taken by .*path='/ws/docs'"):
        docs_routes(FastAPI())
    everything = Starlette(routes=[Mount("/", Starlette())])
    with pytest.raises(ValueError, match="is taken by Mount"):
        docs_routes(everything)


@pytest.mark.parametrize("path", ["docs", "/docs/", "/", "/{docs}"])
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(ValueError, match="expected a path such as '/docs'"):
        docs_routes(Starlette(), path=path)


def test_in_fastapi_at_a_path_of_its_own() -> None:
    app = FastAPI(routes=[WebSocketRoute("/ws", EchoEndpoint)])
    app.router.routes.extend(docs_routes(app, path="/live/docs"))
    client = TestClient(app)
    page = client.get("/live/docs").text
    assert 'data-root="../"' in page
    assert 'src="docs/static/docs/page.js"' in page
    assert client.get("/live/docs/static/docs/page.js").status_code == 200
    channels = client.get("/live/docs/asyncapi.json").json()["channels"]
    assert [channel["address"] for channel in channels.values()] == ["/ws"]
    assert "/live/docs" not in client.get("/openapi.json").json()["paths"]


# The page


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(TRIED) as server:
        yield server


def view(page: Page) -> Locator:
    return page.locator(".view:not([hidden])")


def opened(visit: Visit, server: Server, name: str, **options: Any) -> Locator:
    page = visit(f"{server.url}/docs", **options)
    if name != "Shop":
        page.get_by_role("link", name=name).click()
        expect(page.get_by_role("heading", name=name)).to_be_focused()
    return view(page)


def connect(shown: Locator) -> None:
    shown.get_by_role("button", name="Connect", exact=True).click()
    expect(shown.locator(".pill")).to_have_text("Connected")


def connected(visit: Visit, server: Server, name: str, **options: Any) -> Locator:
    shown = opened(visit, server, name, **options)
    if name == "Shop":
        shown.get_by_label("shop").fill("corner")
    connect(shown)
    return shown


def order(shown: Locator, name: str = "tea") -> None:
    shown.get_by_label("name").fill(name)
    shown.get_by_label("count").fill("2")
    shown.get_by_label("city").fill("Oslo")


def send(shown: Locator) -> None:
    shown.get_by_role("button", name="Send", exact=True).click()


def send_raw(shown: Locator, text: str) -> None:
    shown.get_by_label("What to send").fill(text)
    send(shown)


def received(shown: Locator) -> Locator:
    return shown.locator(".frame.received")


def test_a_form_is_sent_and_answered(server: Server, visit: Visit) -> None:
    shown = connected(visit, server, "Shop")
    order(shown)
    shown.get_by_role("button", name="Add to tags").click()
    shown.get_by_label("tags 1").fill("hot")
    send(shown)
    expect(received(shown).locator(".type")).to_have_text(["ordered"])
    expect(received(shown).locator(".after")).to_have_text(
        re.compile(r"^next frame after [\d.]+ ms$")
    )
    head = received(shown).locator(".head")
    head.click()
    expect(head).to_have_attribute("aria-expanded", "true")
    body = received(shown).locator(".body")
    expect(body).to_contain_text('"tags": [\n')
    expect(body).to_contain_text('"city": "Oslo"')
    head.click()
    expect(body).to_have_count(0)


def test_a_message_with_an_id_is_answered_with_it(server: Server, visit: Visit) -> None:
    shown = connected(visit, server, "Shop")
    order(shown)
    shown.get_by_label("with an id").check()
    send(shown)
    expect(received(shown).locator(".after")).to_have_text(re.compile(r"^answer after [\d.]+ ms$"))


def test_an_answer_with_the_same_id_has_its_own_round_trip(server: Server, visit: Visit) -> None:
    shown = connected(visit, server, "Flood")
    send_raw(shown, '{"type": "a", "id": 7}')
    expect(received(shown).locator(".after")).to_have_text(re.compile(r"^answer after [\d.]+ ms$"))


@pytest.mark.parametrize(
    ("label", "value", "sentence"),
    [
        ("name", "x", "name has at least 2 characters."),
        ("count", "many", "count is a whole number."),
        ("count", "9" * 17, "count is too large for this form: write it in a raw frame."),
        ("count", "", "count is needed."),
    ],
)
def test_a_field_that_will_not_do_is_told(
    server: Server, visit: Visit, label: str, value: str, sentence: str
) -> None:
    shown = connected(visit, server, "Shop")
    order(shown)
    shown.get_by_label(label).fill(value)
    send(shown)
    expect(shown.locator("[id$=send-problem]")).to_have_text(sentence)
    expect(shown.get_by_label(label)).to_be_focused()
    expect(shown.locator(".frame.sent")).to_have_count(0)


def test_a_raw_frame_begins_with_the_form(server: Server, visit: Visit) -> None:
    shown = connected(visit, server, "Shop")
    order(shown)
    shown.get_by_role("tab", name="Raw frame").click()
    expect(shown.get_by_label("What to send")).to_have_value(re.compile('"city": "Oslo"'))
    send_raw(shown, "{")
    expect(shown.locator("[id$=send-problem]")).to_contain_text("This is no JSON")
    send_raw(shown, '{"type": "none"}')
    expect(received(shown)).to_contain_text("unknown message type")


def test_bytes_go_both_ways_as_hex(server: Server, visit: Visit) -> None:
    shown = connected(visit, server, "Bytes")
    send_raw(shown, "0x00 ff 4")
    expect(shown.locator("[id$=send-problem]")).to_contain_text("pairs of hex digits")
    send_raw(shown, "00 ff 41")
    expect(received(shown).locator(".preview")).to_have_text("41 ff 00")
    received(shown).locator(".head").click()
    expect(received(shown).locator(".body")).to_have_text(re.compile(r"^000000 +41 ff 00 +A\.\.$"))


def test_the_next_connection_begins_where_the_last_one_ended(server: Server, visit: Visit) -> None:
    shown = connected(visit, server, "News")
    since = shown.get_by_label("since")
    expect(received(shown)).to_have_count(1)
    send_raw(shown, '"one"')
    expect(received(shown)).to_have_count(2)
    expect(received(shown).last).to_contain_text('"offset":1,"data":"one"')
    shown.get_by_role("button", name="Disconnect").click()
    expect(since).to_have_value(re.compile(r'^\{"news":\{"offset":1,"epoch":"\w+"\}\}$'))
    expect(shown.locator(".url")).to_have_text(re.compile(r"/news\?since=%7B%22news%22"))
    other = connected(visit, server, "News")
    send_raw(other, '"two"')
    expect(received(other).last).to_contain_text('"two"')
    connect(shown)
    expect(received(shown)).to_have_count(4)
    expect(received(shown).nth(2)).to_contain_text('"recovered":true')
    expect(received(shown).last).to_contain_text('"offset":2,"data":"two"')
    shown.get_by_role("button", name="Disconnect").click()
    expect(since).to_have_value(re.compile('"offset":2'))
    since.fill("")
    connect(shown)
    expect(received(shown)).to_have_count(5)
    expect(received(shown).last).not_to_contain_text("recovered")


def test_a_close_is_told_with_its_meaning_and_reason(server: Server, visit: Visit) -> None:
    shown = connected(visit, server, "Shop")
    shown.get_by_label("Message").select_option("Who")
    send(shown)
    expect(shown.locator(".pill")).to_have_text("Closed (4404)")
    expect(shown.locator(".detail")).to_contain_text("Reason: nobody is here")
    connect(shown)


def test_a_refusal_is_told_as_far_as_it_can_be(server: Server, visit: Visit) -> None:
    shown = opened(visit, server, "Shop")
    shown.get_by_label("shop").fill("a/b")
    shown.get_by_role("button", name="Connect", exact=True).click()
    expect(shown.locator("[id$=connect-problem]")).to_contain_text("can't stand in an address")
    shown = opened(visit, server, "ItemEndpoint")
    shown.get_by_label("item_id").fill("foo")
    shown.get_by_role("button", name="Connect", exact=True).click()
    expect(shown.locator(".detail")).to_have_text(
        "The server refused this connection. It may want a token. Its log says why."
    )
    for where in ("subprotocol", "query"):
        shown.get_by_label("Token", exact=True).fill("very-secret")
        shown.get_by_label("Where the token stands").select_option(where)
        connect(shown)
        shown.get_by_role("button", name="Disconnect").click()
        expect(shown.locator(".pill")).to_have_text("Closed (1000)")
    page = shown.page
    kept = page.evaluate("JSON.stringify([{...sessionStorage}, {...localStorage}, location.href])")
    copies = shown.locator(".copies").text_content() or ""
    shown_url = shown.locator(".url").text_content() or ""
    assert "very-secret" not in kept + copies + shown_url
    assert "$TOKEN" in copies


def test_the_copied_code_runs(server: Server, visit: Visit) -> None:
    shown = opened(visit, server, "Flood")
    shown.get_by_label("What to send").fill('it\'s "me" \u2028 $HOME')
    code = shown.locator("[id$=panel-python] pre").text_content() or ""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    guard = threading.Timer(20, process.kill)
    guard.start()
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == 'it\'s "me" \u2028 $HOME\n'
        process.kill()
    guard.cancel()
    script = shown.locator("[id$=panel-javascript] pre").text_content() or ""
    with shown.page.expect_console_message(lambda said: "$HOME" in said.text):
        shown.page.evaluate(script)


def test_thousands_of_frames_leave_the_page_alive(server: Server, visit: Visit) -> None:
    shown = connected(visit, server, "Flood")
    send_raw(shown, "5000")
    expect(received(shown).last).to_contain_text("done", timeout=20_000)
    expect(shown.locator(".frame")).to_have_count(500)
    expect(shown.locator(".dropped")).to_have_text("4,503 older frames are not kept.")
    shown.get_by_label("Show frames that contain").fill("frame 4999")
    expect(shown.locator(".frame:not([hidden])")).to_have_count(1)
    shown.get_by_role("button", name="Clear").click()
    expect(shown.locator(".frame")).to_have_count(0)


def test_what_comes_is_text(server: Server, visit: Visit) -> None:
    shown = connected(visit, server, "Flood")
    for payload in ("<img src=x onerror=pwned(1)>", '{"type":"<script>pwned(2)</script>"}'):
        before = received(shown).count()
        send_raw(shown, payload)
        expect(received(shown)).to_have_count(before + 1)
        received(shown).last.locator(".head").click()
        expect(received(shown).last.locator(".body")).to_contain_text(payload[-12:-2])
    assert shown.locator("img, script").count() == 0


def test_by_keyboard_alone(server: Server, visit: Visit) -> None:
    page = visit(f"{server.url}/docs#Flood")
    shown = view(page)
    button = shown.get_by_role("button", name="Connect", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    expect(shown.locator(".pill")).to_have_text("Connected")
    shown.get_by_label("What to send").focus()
    page.keyboard.type("hello")
    page.keyboard.press("Control+Enter")
    expect(received(shown)).to_have_count(1)
    shown.get_by_role("list", name="Frames").focus()
    page.keyboard.press("End")
    expect(received(shown).locator(".head")).to_be_focused()
    page.keyboard.press("Enter")
    expect(received(shown).locator(".body")).to_have_text("hello")
    expect(page.get_by_role("status")).to_have_text("Received text: hello")


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_looks(server: Server, visit: Visit, width: int, scheme: str) -> None:
    touch = PHONE if width < 1000 else {}
    size = {"width": width, "height": 800}
    shown = opened(visit, server, "Shop", viewport=size, color_scheme=scheme, **touch)
    page = shown.page
    page.evaluate(axe_source())
    assert barriers(page) == []
    shown.get_by_label("shop").fill("corner")
    connect(shown)
    order(shown)
    send(shown)
    expect(received(shown)).to_have_count(1)
    received(shown).locator(".head").click()
    for part in shown.locator("details.part > summary").all():
        part.click()
    assert barriers(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_the_window_itself_does_not_scroll(server: Server, visit: Visit) -> None:
    """On a wide screen its parts do, each for itself."""
    shown = opened(visit, server, "Shop", viewport={"width": 1280, "height": 800})
    page = shown.page
    for part in shown.locator("details.part > summary").all():
        part.click()
    assert page.evaluate("document.documentElement.scrollHeight") == 800
    work = shown.locator(".work")
    assert work.evaluate("work => work.scrollHeight > work.clientHeight")


def test_a_narrow_phone_breaks_no_name_of_a_language(server: Server, visit: Visit) -> None:
    size = {"viewport": {"width": 320, "height": 800}}
    shown = opened(visit, server, "Shop", **{**PHONE, **size})
    shown.get_by_text("Copy as").click()
    tabs = shown.get_by_role("tablist", name="Language").get_by_role("tab")
    boxes = [box for tab in tabs.all() if (box := tab.bounding_box())]
    assert len({box["y"] for box in boxes}) == 1
    assert [box["height"] for box in boxes] == [44, 44, 44]


def barriers(page: Page) -> list[str]:
    """Whatever axe-core finds, of its best practices too."""
    result = page.evaluate("axe.run(document)")
    return [
        f"{found['id']}: {node['html'][:120]} {node['failureSummary'][:200]}"
        for found in result["violations"]
        for node in found["nodes"]
    ]


def test_below_a_root_path(visit: Visit) -> None:
    with running("tests.tried:below") as server:
        page = visit(f"{server.url}/below/docs#Flood")
        shown = view(page)
        connect(shown)
        expect(shown.locator(".url")).to_have_text(re.compile(r"^ws://[^/]+/below/flood$"))


@pytest.mark.parametrize("fragment", ["%", "nothing"])
def test_a_fragment_that_names_no_endpoint(server: Server, visit: Visit, fragment: str) -> None:
    page = visit(f"{server.url}/docs#{fragment}")
    expect(view(page).get_by_role("heading", name="Shop")).to_be_visible()


def test_without_javascript_it_says_so(server: Server, visit: Visit) -> None:
    page = visit(f"{server.url}/docs", java_script_enabled=False)
    expect(page.locator("noscript .notice")).to_be_visible()


def test_an_application_without_endpoints(visit: Visit) -> None:
    with running("tests.tried:empty") as server:
        page = visit(f"{server.url}/docs")
        expect(page.get_by_role("alert")).to_contain_text("No route of this application")
