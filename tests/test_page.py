"""The page, in a real browser against a real server."""

import re
import shlex
import subprocess
import sys
import urllib.request
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, WebSocketRoute, expect

from tests.browser import BELOW_CHAT, Server, Visit, Wire, axe_source, running

pytest_plugins = ["tests.browser"]

PHONE: dict[str, Any] = {
    "viewport": {"width": 360, "height": 740},
    "has_touch": True,
    "is_mobile": True,
}
INK = "node => getComputedStyle(node).color"
TABS = ("echo", "items", "chat")

# Each would call `pwned` or open a dialog if it were taken for anything but text.
PAYLOADS = [
    "<script>pwned(1)</script>",
    "<ScRiPt>pwned(2)</sCrIpT>",
    "<script src=//127.0.0.1:1/x.js></script>",
    '"><script>pwned(3)</script>',
    "'><script>pwned(4)</script>",
    "</textarea><script>pwned(5)</script>",
    "</title><script>pwned(6)</script>",
    "</script><script>pwned(7)</script>",
    "<img src=x onerror=pwned(8)>",
    '<img src="x" onerror="pwned(9)">',
    "<img src=x:x onerror=alert(10)>",
    "<img/src=x/onerror=pwned(11)>",
    "<img src=`x` onerror=pwned(12)>",
    '"><img src=x onerror=pwned(13)>',
    '" onfocus="pwned(14)" autofocus="',
    "' onmouseover='pwned(15)",
    "` onclick=`pwned(16)",
    "<svg onload=pwned(17)>",
    "<svg/onload=pwned(18)>",
    "<svg><script>pwned(19)</script></svg>",
    "<svg><animate onbegin=pwned(20) attributeName=x dur=1s>",
    '<svg><a xlink:href="javascript:pwned(21)"><text y=20>x</text></a></svg>',
    "<svg><foreignObject><body onload=pwned(22)></foreignObject></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror=pwned(23)>",
    "<body onload=pwned(24)>",
    "<body onpageshow=pwned(25)>",
    '<iframe src="javascript:pwned(26)"></iframe>',
    '<iframe srcdoc="<script>parent.pwned(27)</script>"></iframe>',
    '<object data="javascript:pwned(28)"></object>',
    '<embed src="javascript:pwned(29)">',
    '<a href="javascript:pwned(30)">click</a>',
    '<a href="data:text/html,<script>alert(31)</script>">click</a>',
    '<form action="javascript:pwned(32)"><button>go</button></form>',
    '<button formaction="javascript:pwned(33)" form=x>go</button>',
    "<input autofocus onfocus=pwned(34)>",
    "<select autofocus onfocus=pwned(35)></select>",
    "<video><source onerror=pwned(36)></video>",
    "<audio src=x onerror=pwned(37)>",
    "<details open ontoggle=pwned(38)>",
    "<marquee onstart=pwned(39)>x</marquee>",
    '<link rel=stylesheet href="//127.0.0.1:1/x.css">',
    "<style>@import '//127.0.0.1:1/x.css';*{display:none}</style>",
    '<meta http-equiv="refresh" content="0;url=javascript:pwned(40)">',
    '<base href="//127.0.0.1:1/">',
    "<noscript><p title='</noscript><img src=x onerror=pwned(41)>'>",
    "<template><script>pwned(42)</script></template>",
    "<x onpointerenter=pwned(43) style=position:fixed;inset:0>",
    "javascript:pwned(44)",
    "&lt;script&gt;pwned(45)&lt;/script&gt;",
    "&#60;img src=x onerror=pwned(46)&#62;",
    "\\u003cimg src=x onerror=pwned(47)\\u003e",
    "{{constructor.constructor('pwned(48)')()}}",
    "${pwned(49)}",
    "{% print(7*7) %}",
    "<!--><img src=x onerror=pwned(50)>-->",
    "<![CDATA[<img src=x onerror=pwned(51)>]]>",
    "$& $` $' $1 {item_id} {client_id}",
]


def panel(page: Page, name: str) -> Locator:
    """Show a tab, and give its panel."""
    page.get_by_role("tab", name=name.capitalize()).click()
    return page.locator(f"#panel-{name}")


def connected(page: Page, name: str) -> Locator:
    """Show a tab, and give its panel once it is connected."""
    shown = panel(page, name)
    expect(shown.locator(".pill")).to_have_text("Connected")
    return shown


def fill(shown: Locator, **fields: str) -> None:
    for name, value in fields.items():
        shown.locator(f"[name={name}]").fill(value)


def connected_item(page: Page, **fields: str) -> Locator:
    shown = panel(page, "items")
    fill(shown, **fields)
    shown.get_by_role("button", name="Connect", exact=True).click()
    return connected(page, "items")


def send(shown: Locator, text: str) -> None:
    box = shown.locator("textarea")
    box.fill(text)
    box.press("Enter")


def messages(shown: Locator, kind: str) -> Locator:
    return shown.locator(f".message.{kind}")


def delivery(shown: Locator) -> Locator:
    """How own messages fare."""
    return messages(shown, "own").locator(".delivery")


def marks(shown: Locator) -> Locator:
    """What the log says of the connection."""
    return shown.locator(".mark:not(.day) > span > span:first-child")


def item_attempts(page: Page) -> list[str]:
    """The addresses of items that a page has tried to connect to, growing."""
    urls: list[str] = []
    page.on(
        "websocket", lambda socket: urls.append(socket.url) if "/items/" in socket.url else None
    )
    return urls


def client_id(page: Page) -> str:
    who = page.locator(".whoami")
    expect(who).to_have_text(re.compile(r"^client #\d+$"))
    return str(who.text_content()).removeprefix("client #")


# What the tabs do


def test_the_page_is_plain_html(server: Server) -> None:
    with urllib.request.urlopen(server.url) as response:
        page = response.read().decode()
    assert page.startswith("<!DOCTYPE html>")
    assert "localhost:8000" not in page
    assert not re.search(r"<script(?![^>]*(src=|application/json))|<style|\son\w+=", page)


def test_echo(server: Server, visit: Visit) -> None:
    echo = connected(visit(server.url), "echo")
    send(echo, "Hello")
    expect(messages(echo, "own").locator(".text")).to_have_text(["Hello"])
    expect(delivery(echo)).to_have_text(["delivered"])
    expect(messages(echo, "other").locator(".text")).to_have_text(["Message text was: Hello"])
    expect(echo.locator("textarea")).to_have_value("")


def test_send_button_sends_several_lines(server: Server, visit: Visit) -> None:
    echo = connected(visit(server.url), "echo")
    echo.locator("textarea").fill("one")
    echo.locator("textarea").press("Shift+Enter")
    echo.locator("textarea").press_sequentially("two")
    echo.get_by_role("button", name="Send").click()
    answer = messages(echo, "other").locator(".text")
    expect(answer).to_have_count(1)
    assert answer.text_content() == "Message text was: one\ntwo"


def test_item_has_the_tutorials_defaults(server: Server, visit: Visit) -> None:
    items = panel(visit(server.url), "items")
    expect(items.get_by_label("Item ID")).to_have_value("foo")
    expect(items.get_by_label("Token")).to_have_value("some-key-token")
    expect(items.locator(".pill")).to_have_text("Not connected")


def test_item_with_token(server: Server, visit: Visit) -> None:
    items = connected_item(visit(server.url), item_id="a b?", token="s&cr=t")
    send(items, "Hi")
    expect(messages(items, "other").locator(".text")).to_have_text(
        [
            "Session cookie or query token value is: s&cr=t",
            "Message text was: Hi, for item ID: a b?",
        ]
    )
    expect(items.locator(".address")).to_have_text(
        re.compile(r"^ws://.*/items/a%20b%3F/ws\?token=…$")
    )


def test_item_with_q(server: Server, visit: Visit) -> None:
    items = connected_item(visit(server.url), q="42")
    send(items, "Hi")
    expect(messages(items, "other").locator(".text")).to_have_text(
        [
            "Session cookie or query token value is: some-key-token",
            "Query parameter q is: 42",
            "Message text was: Hi, for item ID: foo",
        ]
    )


WRONG_FIELDS: list[tuple[str, str, str]] = [
    ("item_id", "", "An item ID is needed."),
    ("item_id", ".", '"." can\'t be an item ID in an address.'),
    ("item_id", "..", '".." can\'t be an item ID in an address.'),
    ("item_id", "a/b", '"a/b" can\'t be an item ID in an address.'),
    ("q", "many", "q is a whole number, or left empty."),
    ("q", "1.5", "q is a whole number, or left empty."),
]


@pytest.mark.parametrize(("name", "value", "sentence"), WRONG_FIELDS)
def test_a_field_that_will_not_do_is_told_beside_the_fields(
    server: Server, visit: Visit, name: str, value: str, sentence: str
) -> None:
    page = visit(server.url)
    attempts = item_attempts(page)
    items = panel(page, "items")
    field, problem = items.locator(f"[name={name}]"), items.locator(".problem")
    field.fill(value)
    items.get_by_role("button", name="Connect").click()
    expect(problem).to_have_text(sentence)
    expect(field).to_be_focused()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_have_accessible_description(sentence)
    expect(page.get_by_role("status")).to_have_text(sentence)
    assert attempts == []
    field.fill("7")
    expect(problem).to_be_hidden()
    expect(field).to_have_attribute("aria-invalid", "false")


def test_a_field_that_will_not_do_leaves_the_connection_alone(server: Server, visit: Visit) -> None:
    page = visit(server.url)
    items = connected_item(page)
    for name, value, sentence in WRONG_FIELDS:
        fill(items, **{"item_id": "foo", "q": "", name: value})
        items.locator(f"[name={name}]").press("Enter")
        expect(items.locator(".problem")).to_have_text(sentence)
        expect(items.locator(".pill")).to_have_text("Connected")
    send(items, "still here")
    expect(messages(items, "other").last).to_contain_text("still here, for item ID: foo")
    expect(marks(items)).to_have_count(0)


def test_items_have_one_button_for_what_can_be_done_now(server: Server, visit: Visit) -> None:
    page = visit(server.url)
    attempts = item_attempts(page)
    items = panel(page, "items")
    button = items.locator(".side").get_by_role("button")
    token = items.get_by_label("Token")
    expect(button).to_have_text(["Connect"])
    token.press("Enter")
    expect(button).to_have_text(["Disconnect"])
    expect(items.get_by_role("log")).to_have_text("This is item foo. Send something to it.")
    token.press("Enter")  # connected with just these fields already
    fill(items, item_id="bar")
    expect(button).to_have_text(["Reconnect"])
    fill(items, item_id="foo")
    expect(button).to_have_text(["Disconnect"])
    assert len(attempts) == 1
    fill(items, item_id="bar")
    button.click()
    expect(marks(items)).to_have_text(["Connected to /items/bar/ws"])
    expect(button).to_have_text(["Disconnect"])
    button.click()
    expect(button).to_have_text(["Connect"])
    expect(items.locator(".pill")).to_have_text("Closed (1000)")
    assert [url.partition("?")[0].split("/")[-2] for url in attempts] == ["foo", "bar"]


def test_three_tabs_chat_and_one_leaves(server: Server, visit: Visit) -> None:
    pages = [visit(server.url) for _ in range(3)]
    chats = [connected(page, "chat") for page in pages]
    ids = [client_id(page) for page in pages]
    assert len(set(ids)) == 3
    send(chats[0], "Hello everyone")
    own = messages(chats[0], "own")
    expect(delivery(chats[0])).to_have_text(["delivered"])
    expect(own).to_have_text(re.compile(r"^You: Hello everyone\d\d:\d\d.*delivered$"))
    expect(messages(chats[0], "other")).to_have_count(0)
    for chat in chats[1:]:
        expect(messages(chat, "other")).to_contain_text(f"Client #{ids[0]} says: Hello everyone")
    pages[2].close()
    for chat in chats[:2]:
        expect(messages(chat, "system")).to_contain_text(f"Client #{ids[2]} left the chat")


def test_disconnect_button_leaves_the_chat(server: Server, visit: Visit) -> None:
    leaver, stayer = visit(server.url), visit(server.url)
    left, stayed = connected(leaver, "chat"), connected(stayer, "chat")
    left.get_by_role("button", name="Disconnect").click()
    expect(left.locator(".detail")).to_have_text("Closed with code 1000: Closed normally.")
    expect(marks(left)).to_have_text(["Disconnected."])
    leaver_id = client_id(leaver)
    expect(messages(stayed, "system")).to_contain_text(f"Client #{leaver_id} left the chat")
    left.get_by_role("button", name="Connect").click()
    expect(left.locator(".pill")).to_have_text("Connected")


def test_nothing_that_another_with_the_same_number_says_is_hidden(
    server: Server, visit: Visit
) -> None:
    page, other = visit(server.url), visit(server.url)
    chat = connected(page, "chat")
    number = client_id(page)
    send(chat, "same words")
    expect(delivery(chat)).to_have_text(["delivered"])
    other.evaluate(
        """number => {
            const url = new URL(`/ws/${number}`, location.href);
            url.protocol = "ws:";
            const socket = new WebSocket(url);
            socket.onopen = () => socket.send("same words");
        }""",
        number,
    )
    expect(messages(chat, "other")).to_contain_text(f"Client #{number} says: same words")


def test_client_keeps_its_number_over_a_reload(server: Server, visit: Visit) -> None:
    page = visit(server.url)
    number = client_id(page)
    page.reload()
    assert client_id(page) == number


def test_news_of_a_hidden_tab_is_counted(server: Server, visit: Visit) -> None:
    page, other = visit(server.url), visit(server.url)
    connected(page, "chat")
    connected(page, "echo")
    send(connected(other, "chat"), "psst")
    badge = page.locator("#tab-chat .unread")
    expect(badge).to_have_text("1")
    panel(page, "chat")
    expect(badge).to_be_hidden()


# Losing the connection


def test_server_dies_and_comes_back(own_server: Server, visit: Visit) -> None:
    page = visit(own_server.url)
    chat = connected(page, "chat")
    own_server.kill()
    expect(chat.locator(".pill")).to_have_text(re.compile(r"^Retry in \d+ s$"))
    chat.locator("textarea").fill("typed meanwhile")
    chat.locator("textarea").press("Enter")
    button = chat.get_by_role("button", name="Send")
    expect(button).to_be_disabled()
    expect(button).to_have_accessible_description("What you type is kept for later.")
    expect(chat.locator(".detail")).to_contain_text("The server can't be reached.")
    own_server.start()
    expect(chat.locator(".pill")).to_have_text("Connected", timeout=20_000)
    expect(chat.locator("textarea")).to_have_value("typed meanwhile")
    expect(button).to_be_enabled()
    button.click()
    expect(messages(chat, "own")).to_contain_text("typed meanwhile")
    expect(marks(chat)).to_have_text(
        ["Connection lost.", "Connected again. Messages of others in between are not shown."]
    )


def test_a_proxy_that_knows_no_such_path_while_the_server_restarts(
    own_server: Server, visit: Visit
) -> None:
    page = visit(own_server.url)
    echo = connected(page, "echo")
    page.route("**/ws", lambda route: route.fulfill(status=404))
    own_server.kill()
    for _ in range(3):
        page.wait_for_event("request", lambda request: request.url.endswith("/ws"))
    expect(echo.locator(".detail")).to_have_text(
        "The server is there, but did not take the connection."
    )
    expect(echo.locator(".pill")).to_have_text(re.compile(r"^Retry in \d+ s$"))
    own_server.start()
    expect(echo.locator(".pill")).to_have_text("Connected", timeout=20_000)


def test_reconnect_now(own_server: Server, visit: Visit) -> None:
    page = visit(own_server.url)
    page.clock.install()
    echo = connected(page, "echo")
    page.clock.pause_at("2100-01-01")  # no attempt by itself from here on
    own_server.kill()
    expect(echo.locator(".pill")).to_have_text(re.compile("^Retry in"))
    own_server.start()
    echo.get_by_role("button", name="Retry now").click()
    expect(echo.locator(".pill")).to_have_text("Connected")


def test_coming_back_to_the_network_reconnects_at_once(own_server: Server, visit: Visit) -> None:
    page = visit(own_server.url)
    page.clock.install()
    echo = connected(page, "echo")
    page.clock.pause_at("2100-01-01")
    own_server.kill()
    expect(echo.locator(".pill")).to_have_text(re.compile("^Retry in"))
    own_server.start()
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(echo.locator(".pill")).to_have_text("Connected")


def test_drafts_outlive_a_reload_and_a_token_does_not(server: Server, visit: Visit) -> None:
    page = visit(server.url)
    for name in TABS:
        panel(page, name).locator("textarea").fill(f"a draft for {name}")
    connected_item(page, item_id="bar", token="very-secret", q="7")
    kept = page.evaluate("JSON.stringify([{...sessionStorage}, {...localStorage}])")
    assert "very-secret" not in kept
    page.reload()
    for name in TABS:
        expect(panel(page, name).locator("textarea")).to_have_value(f"a draft for {name}")
    items = panel(page, "items")
    expect(items.get_by_label("Item ID")).to_have_value("bar")
    expect(items.locator("[name=q]")).to_have_value("7")
    expect(items.get_by_label("Token")).to_have_value("some-key-token")


def closing_echo(page: Page, code: int, reason: str) -> None:
    """Have the echo closed with a code at its first message, instead of answered."""

    def serve(socket: WebSocketRoute) -> None:
        socket.on_message(lambda _: socket.close(code=code, reason=reason))

    page.route_web_socket(re.compile(r"^ws://[^/]+/ws$"), serve)
    page.reload()


@pytest.mark.parametrize(
    ("code", "meaning"),
    [(1008, "Not allowed."), (4401, "The token is missing, wrong or expired."), (4499, "")],
)
def test_codes_that_keep_the_page_away(
    server: Server, visit: Visit, code: int, meaning: str
) -> None:
    page = visit(server.url)
    closing_echo(page, code, "because")
    echo = connected(page, "echo")
    send(echo, "x")
    expect(echo.locator(".pill")).to_have_text(f"Closed ({code})")
    detail = echo.locator(".detail")
    expect(detail).to_contain_text(f"Closed with code {code}: {meaning}")
    expect(detail).to_contain_text("Reason: because")
    expect(detail).to_contain_text("Not trying again by itself.")
    echo.get_by_role("button", name="Connect").click()
    expect(echo.locator(".pill")).to_have_text("Connected")


@pytest.mark.parametrize("code", [1012, 1013, 4500])
def test_codes_after_which_the_page_comes_back(server: Server, visit: Visit, code: int) -> None:
    page = visit(server.url)
    closing_echo(page, code, "")
    page.clock.install()
    echo = connected(page, "echo")
    page.clock.pause_at("2100-01-01")
    send(echo, "x")
    expect(echo.locator(".pill")).to_have_text(re.compile("^Retry in"))
    expect(echo.locator(".detail")).to_contain_text(f"Closed with code {code}: ")
    page.clock.resume()
    expect(echo.locator(".pill")).to_have_text("Connected")


def test_a_close_reason_that_says_what_the_code_means_is_not_repeated(
    server: Server, visit: Visit
) -> None:
    page = visit(server.url)
    closing_echo(page, 1008, "Not allowed.")
    echo = connected(page, "echo")
    send(echo, "x")
    expect(echo.locator(".detail")).to_have_text(
        "Closed with code 1008: Not allowed. Not trying again by itself."
    )


def test_a_message_whose_connection_ends_was_not_delivered(server: Server, visit: Visit) -> None:
    page = visit(server.url)
    closing_echo(page, 4499, "")
    echo = connected(page, "echo")
    send(echo, "did this arrive?")
    expect(delivery(echo)).to_have_text(["not delivered"])
    expect(echo.get_by_role("button", name="Send again")).to_be_visible()
    expect(echo.locator("textarea")).to_have_value("")
    expect(marks(echo)).to_have_text(["Connection closed."])


@pytest.mark.parametrize("again", ["while it is frozen", "once it is back"])
def test_a_network_that_stands_still(wire: Wire, visit: Visit, again: str) -> None:
    page = visit(wire.url)
    page.clock.install()
    chat = connected(page, "chat")
    send(chat, "first")
    own = messages(chat, "own")
    expect(delivery(chat)).to_have_text(["delivered"])
    wire.freeze()
    send(chat, "second")
    page.clock.fast_forward(2_000)
    expect(delivery(chat).last).to_have_text("sending…")
    page.clock.fast_forward(8_000)
    expect(delivery(chat).last).to_have_text("not delivered")
    expect(chat.locator(".detail")).to_have_text("The server did not answer.")
    expect(page.get_by_role("status")).to_have_text(
        re.compile(r"^A message was not delivered. Chat: Retry in \d+ s. The server did not")
    )
    button = chat.get_by_role("button", name="Send again")
    expect(button).to_have_count(1)
    button.focus()
    if again == "while it is frozen":
        button.click()
        page.clock.fast_forward(1_000)
        expect(delivery(chat).last).to_have_text("sending…")
        wire.thaw()
        page.clock.fast_forward(20_000)
    else:
        wire.thaw()
        page.clock.fast_forward(20_000)
        expect(chat.locator(".pill")).to_have_text("Connected")
        button.click()
    expect(delivery(chat)).to_have_text(["delivered", "delivered"])
    expect(own.locator(".text")).to_have_text(["first", "second"])
    expect(button).to_have_count(0)
    expect(chat.get_by_role("log")).to_be_focused()
    expect(marks(chat)).to_have_text(
        ["Connection lost.", "Connected again. Messages of others in between are not shown."]
    )


def test_an_answer_that_comes_late_is_an_answer(server: Server, visit: Visit) -> None:
    page = visit(server.url)
    sockets: list[WebSocketRoute] = []
    page.route_web_socket(re.compile(r"/ws$"), lambda socket: sockets.append(socket))
    page.reload()
    page.clock.install()
    echo = connected(page, "echo")
    send(echo, "slow")
    sockets[-1].send("It is a busy day.")
    expect(messages(echo, "other")).to_have_count(1)
    page.clock.fast_forward(2_000)
    page.clock.fast_forward(8_000)
    expect(delivery(echo)).to_have_text(["not delivered"])
    expect(echo.locator(".pill")).to_have_text("Connected")  # something came, so it is alive
    sockets[-1].send("Message text was: slow")
    expect(delivery(echo)).to_have_text(["delivered"])
    expect(echo.get_by_role("button", name="Send again")).to_have_count(0)


def test_the_network_coming_back_begins_a_stuck_attempt_anew(wire: Wire, visit: Visit) -> None:
    page = visit(wire.url)
    echo = connected(page, "echo")
    wire.freeze()
    echo.get_by_role("button", name="Disconnect").click()
    with page.expect_websocket():
        echo.get_by_role("button", name="Connect").click()
    expect(echo.locator(".pill")).to_have_text("Connecting…")
    with page.expect_websocket():
        page.evaluate("dispatchEvent(new Event('online'))")
    wire.thaw()
    expect(echo.locator(".pill")).to_have_text("Connected")


# Being refused


def refused(items: Locator) -> Locator:
    """Where it says why, once it does."""
    items.get_by_role("button", name="Connect").click()
    expect(items.locator(".pill")).to_have_text("Refused")
    return items.locator(".detail")


def test_a_refusal_is_believed(server: Server, visit: Visit) -> None:
    page = visit(server.url)
    page.clock.install()
    attempts = item_attempts(page)
    items = panel(page, "items")
    fill(items, token="")
    expect(refused(items)).to_have_text("The server refused this connection. It wants a token.")
    expect(items.get_by_role("button", name="Connect")).to_be_enabled()
    page.clock.fast_forward(60_000)
    expect(items.locator(".pill")).to_have_text("Refused")
    assert len(attempts) == 1


def test_why_is_asked_without_the_token(server: Server, visit: Visit) -> None:
    page = visit(server.url)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    items = panel(page, "items")
    fill(items, token="very-secret", q="9" * 5000)
    expect(refused(items)).to_have_text("The server refused this connection. Its log says why.")
    assert f"{server.url}/items/foo/ws" in asked
    assert not [url for url in asked if url.startswith("http") and "very-secret" in url]


def test_with_a_secret_it_tells_how_to_make_a_token(visit: Visit) -> None:
    secret = {"CHATSERVER_TOKEN_SECRET": "a secret of the tests, of 32 bytes or more"}
    with running(environment=secret) as server:
        items = panel(visit(server.url), "items")
        expect(items.get_by_label("Token")).to_have_value("")
        fill(items, item_id="it's $HOME", token="some-key-token")
        expect(refused(items)).to_contain_text("this prints a token that opens the item")
        command = items.locator(".command").inner_text().strip()
        assert command == r"chatserver token --sub me --item 'it'\''s $HOME'"
        token = subprocess.run(
            [sys.executable, "-m", *shlex.split(command)],
            env=server.environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        fill(items, token=token)
        items.get_by_role("button", name="Connect").click()
        expect(items.locator(".pill")).to_have_text("Connected")
        expect(items.locator(".command")).to_be_hidden()


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (426, "Its log says why."),
        (404, "It has no WebSocket at this address."),
        (403, "A plain request for this address is answered with 403, perhaps by a proxy in front"),
    ],
)
def test_what_plain_http_tells_of_a_refusal(
    server: Server, visit: Visit, status: int, why: str
) -> None:
    def elsewhere(route: Route) -> None:
        answer = route.fetch()
        body = answer.text().replace('data-path="/ws"', 'data-path="/nowhere"')
        route.fulfill(response=answer, body=body)

    page = visit(server.url)
    page.route(f"{server.url}/", elsewhere)
    page.route("**/nowhere", lambda route: route.fulfill(status=status))
    page.goto(f"{server.url}/")
    echo = panel(page, "echo")
    expect(echo.locator(".pill")).to_have_text("Refused")
    detail = echo.locator(".detail")
    expect(detail).to_contain_text(f"The server refused this connection. {why}")
    assert len(set(sentences := str(detail.text_content()).split(". "))) == len(sentences)


# Coming back


def test_back_off_doubles_to_fifteen_seconds_and_is_jittered(server: Server, visit: Visit) -> None:
    delays = visit(server.url).evaluate(
        """async () => {
            const { backoff } = await import(new URL("static/socket.js", location.href));
            const attempts = [0, 1, 2, 3, 4, 5, 50];
            return attempts.map((n) => [backoff(n, () => 0), backoff(n, () => 1)]);
        }"""
    )
    longest = [500, 1000, 2000, 4000, 8000, 15000, 15000]
    assert delays == [[delay / 2, delay] for delay in longest]


# Messages


def test_too_large_a_message_is_not_sent(server: Server, visit: Visit) -> None:
    echo = connected(visit(server.url), "echo")
    box, hint = echo.locator("textarea"), echo.locator(".hint")
    box.fill("é" * 32_768)
    expect(echo.get_by_role("button", name="Send")).to_be_enabled()
    box.fill("é" * 32_768 + "!")
    expect(hint).to_have_text("This message has 65,537 bytes, the server takes at most 65,536.")
    expect(echo.get_by_role("button", name="Send")).to_be_disabled()
    box.press("Enter")
    expect(messages(echo, "own")).to_have_count(0)
    box.fill("short")
    box.press("Enter")
    expect(messages(echo, "other")).to_have_count(1)


def test_half_a_character_is_answered_as_it_is_sent(server: Server, visit: Visit) -> None:
    echo = connected(visit(server.url), "echo")
    echo.locator("textarea").evaluate("box => { box.value = 'half \\ud83d' }")
    echo.locator("textarea").press("Enter")
    expect(delivery(echo)).to_have_text(["delivered"])


def test_blank_messages_are_not_sent(server: Server, visit: Visit) -> None:
    page = visit(server.url)
    echo = connected(page, "echo")
    button = echo.get_by_role("button", name="Send")
    for blank in ("", " ", " \n\t "):
        send(echo, blank)
        expect(button).to_be_disabled()
        button.click(force=True)
    expect(page.get_by_role("status")).to_have_text("Echo: Connected.")
    send(echo, " x ")
    expect(messages(echo, "other")).to_have_count(1)
    assert messages(echo, "own").locator(".text").all_text_contents() == [" x "]


def test_days_are_set_apart_and_times_are_whole(server: Server, visit: Visit) -> None:
    page = visit(server.url, locale="en-GB", timezone_id="UTC")
    page.clock.install(time="2026-01-01T23:59:00Z")
    echo = connected(page, "echo")
    send(echo, "late")
    expect(messages(echo, "other")).to_have_count(1)
    expect(echo.locator(".day")).to_have_count(0)
    page.clock.set_fixed_time("2026-01-02T00:01:00Z")
    send(echo, "early")
    expect(messages(echo, "other")).to_have_count(2)
    expect(echo.locator(".day")).to_have_text(re.compile("^Friday,? 2 January 2026$"))
    expect(echo.locator(".day + .message .text")).to_have_text("early")
    stamp = messages(echo, "own").last.locator("time")
    expect(stamp).to_have_text("00:01")
    expect(stamp).to_have_attribute("title", re.compile("^Friday,? 2 January 2026.* 00:01:00$"))


def test_log_keeps_the_last_500_and_leaves_its_reader_alone(server: Server, visit: Visit) -> None:
    page = visit(server.url)
    sockets: list[WebSocketRoute] = []
    page.route_web_socket(re.compile(r"/ws/\d+$"), lambda socket: sockets.append(socket))
    page.reload()
    chat = connected(page, "chat")
    log, others = chat.get_by_role("log"), messages(chat, "other")
    for number in range(600):
        sockets[-1].send(f"Client #5 says: message {number}")
    expect(others).to_have_count(500)
    expect(others.last).to_contain_text("message 599")
    expect(others.last).to_be_in_viewport()
    log.evaluate("log => { log.scrollTop = 100 }")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    sockets[-1].send("Client #6 says: one more")
    jump = chat.get_by_role("button", name="1 new message")
    expect(jump).to_be_visible()
    expect(others.last).not_to_be_in_viewport()
    jump.click()
    expect(others.last).to_be_in_viewport()
    expect(jump).to_be_hidden()


@pytest.mark.timeout(120)
def test_hostile_messages_are_text(server: Server, visit: Visit) -> None:
    assert len(PAYLOADS) >= 40
    writer, reader = visit(server.url), visit(server.url)
    wrote, read = connected(writer, "chat"), connected(reader, "chat")
    for count, payload in enumerate(PAYLOADS, 1):
        send(wrote, payload)
        said = messages(read, "other").locator(".text")
        expect(said).to_have_count(count)
        assert said.last.text_content() == payload
    assert messages(wrote, "own").locator(".text").all_text_contents() == PAYLOADS
    for chat in (wrote, read):
        tags = chat.get_by_role("log").evaluate(
            "log => [...new Set([...log.querySelectorAll('*')].map((node) => node.tagName))].sort()"
        )
        assert tags == ["DIV", "SPAN", "TIME"]


@pytest.mark.timeout(120)
def test_hostile_item_ids_and_tokens_are_text(server: Server, visit: Visit) -> None:
    items = panel(visit(server.url), "items")
    heard = messages(items, "other").locator(".text")
    for payload in PAYLOADS:
        item_id = payload.replace("/", "|")  # a slash ends the item ID, however it is written
        items.get_by_label("Item ID").fill(item_id)
        items.get_by_label("Token").fill(payload)
        items.get_by_label("Token").press("Enter")
        expect(items.locator(".pill")).to_have_text("Connected")
        before = heard.count()
        send(items, "x")
        expect(heard).to_have_count(before + 2)
        assert heard.all_text_contents()[-2:] == [
            f"Session cookie or query token value is: {payload}",
            f"Message text was: x, for item ID: {item_id}",
        ]


# Looks, keys and ears


def test_tabs_by_keyboard(server: Server, visit: Visit) -> None:
    page = visit(server.url)
    tab = {name: page.get_by_role("tab", name=name.capitalize()) for name in TABS}
    tab["echo"].focus()
    steps = [
        ("ArrowRight", "items"),
        ("ArrowRight", "chat"),
        ("ArrowRight", "echo"),
        ("ArrowLeft", "chat"),
        ("Home", "echo"),
        ("End", "chat"),
    ]
    for key, name in steps:
        page.keyboard.press(key)
        expect(tab[name]).to_be_focused()
        expect(page.get_by_role("tab", selected=True)).to_have_attribute("id", f"tab-{name}")
        expect(page.get_by_role("tabpanel")).to_have_attribute("id", f"panel-{name}")
        expect(page.locator('[role="tab"][tabindex="0"]')).to_have_count(1)
    assert page.url.endswith("#chat")
    page.keyboard.press("Tab")
    expect(page.locator("#panel-chat .action")).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_messages_are_announced(server: Server, visit: Visit) -> None:
    page = visit(server.url)
    expect(page.get_by_role("status")).to_have_text("Echo: Connected.")
    chat = connected(page, "chat")
    log = chat.get_by_role("log", name="Chat messages")
    expect(log).to_have_attribute("aria-live", "polite")
    expect(chat.get_by_role("textbox", name="Message everyone")).to_be_visible()
    chat.get_by_role("button", name="Disconnect").click()
    expect(page.get_by_role("status")).to_contain_text("Chat: Closed (1000).")


@pytest.mark.parametrize("width", [320, 360, 390])
def test_phone(server: Server, visit: Visit, width: int) -> None:
    page = visit(server.url, **{**PHONE, "viewport": {"width": width, "height": 740}})
    for name in TABS:
        shown = connected_item(page, token="t" * 200) if name == "items" else connected(page, name)
        send_by_button(shown, "long" * 100)
        expect(messages(shown, "own")).to_have_count(1)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        log = shown.get_by_role("log")
        assert log.evaluate("log => log.scrollWidth <= log.clientWidth")
        for control in shown.locator("input, textarea, button").all():
            if not control.is_visible():
                continue
            box = control.bounding_box()
            assert box is not None
            assert box["height"] >= 44
            if control.evaluate("node => node.matches('input, textarea')"):
                size = control.evaluate("node => parseFloat(getComputedStyle(node).fontSize)")
                assert size >= 16


def test_dark_mode(server: Server, visit: Visit) -> None:
    light = visit(server.url, color_scheme="light").locator("body")
    expect(light).to_have_css("background-color", "rgb(244, 242, 236)")
    dark = visit(server.url, color_scheme="dark").locator("body")
    expect(dark).to_have_css("background-color", "rgb(17, 23, 26)")
    assert light.evaluate(INK) != dark.evaluate(INK)


def test_reduced_motion(server: Server, visit: Visit) -> None:
    for wish, animation in (("no-preference", "arrive"), ("reduce", "none")):
        echo = connected(visit(server.url, reduced_motion=wish), "echo")
        send(echo, "x")
        expect(messages(echo, "own")).to_have_css("animation-name", animation)


SIZES = {
    "phone": (390, 844),
    "small phone": (320, 568),
    "on its side": (844, 390),
    "small on its side": (568, 320),
    "above a keyboard": (390, 400),
    "small above a keyboard": (320, 340),
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_last_messages_and_the_box_are_in_view(
    server: Server, visit: Visit, size: tuple[int, int]
) -> None:
    width, height = size
    # Without motion, so that what is looked at stands where it stays.
    options = {**PHONE, "viewport": {"width": width, "height": height}, "reduced_motion": "reduce"}
    page = visit(server.url, **options)
    for name in TABS:
        shown = connected_item(page) if name == "items" else connected(page, name)
        for text in ("one", "two"):
            shown.locator("textarea").fill(text)
            shown.get_by_role("button", name="Send").tap()
            expect(delivery(shown).last).to_have_text("delivered")
        expect(shown.locator("textarea")).to_be_in_viewport(ratio=1)
        expect(shown.get_by_role("button", name="Send")).to_be_in_viewport(ratio=1)
        for message in shown.locator(".message").all()[-2:]:
            expect(message).to_be_in_viewport(ratio=1)
        assert page.evaluate("scrollY") == 0
        log = shown.get_by_role("log").bounding_box()
        assert log is not None
        assert log["height"] >= 0.3 * height


def test_in_a_small_window_what_a_connection_needs_is_there_until_it_has_it(
    server: Server, visit: Visit
) -> None:
    page = visit(server.url, **PHONE)
    items = panel(page, "items")
    notice = page.get_by_text("Any non-empty token passes.")
    expect(items.get_by_label("Item ID")).to_be_in_viewport()
    expect(notice).to_be_hidden()
    page.get_by_text("Open mode").tap()
    expect(notice).to_be_visible()
    items.get_by_label("Token").press("Enter")
    expect(items.locator(".pill")).to_have_text("Connected")
    expect(items.get_by_label("Item ID")).to_be_hidden()
    expect(items.get_by_role("button", name="Disconnect")).to_be_focused()
    items.get_by_role("button", name="Disconnect").tap()
    expect(items.get_by_label("Item ID")).to_be_in_viewport()
    page.set_viewport_size({"width": 1280, "height": 800})
    expect(notice).to_be_visible()


def test_enter_starts_a_new_line_on_touch(server: Server, visit: Visit) -> None:
    echo = connected(visit(server.url, **PHONE), "echo")
    box = echo.locator("textarea")
    expect(box).to_have_attribute("enterkeyhint", "enter")
    box.press_sequentially("one\ntwo")
    expect(box).to_have_value("one\ntwo")
    expect(echo.locator(".hint")).to_be_hidden()
    echo.get_by_role("button", name="Send").tap()
    answer = messages(echo, "other").locator(".text")
    expect(answer).to_have_count(1)
    assert answer.text_content() == "Message text was: one\ntwo"
    expect(box).to_be_focused()  # so that the keyboard stays
    box.fill("three")
    box.press("Control+Enter")
    expect(answer).to_have_count(2)


def test_forced_colours_leave_the_states_apart(server: Server, visit: Visit) -> None:
    page = visit(server.url, forced_colors="active")
    echo = connected(page, "echo")
    send(echo, "x")
    expect(messages(echo, "own")).to_have_css("border-top-width", "1px")
    seen = "(node, name) => getComputedStyle(node).getPropertyValue(name)"
    tab = {name: page.locator(f"#tab-{name}") for name in ("echo", "items")}
    underlines = [tab[name].evaluate(seen, "border-bottom-color") for name in tab]
    assert underlines[0] != underlines[1]  # selected, not selected
    assert underlines[1] == page.locator("body").evaluate(seen, "background-color")
    dots = [tab[name].locator(".dot").evaluate(seen, "background-color") for name in tab]
    assert dots[0] == page.locator("body").evaluate(seen, "color")  # connected: filled
    assert dots[1] != dots[0]


def test_without_javascript_it_says_so_and_offers_nothing_that_would_not_work(
    server: Server, visit: Visit
) -> None:
    page = visit(server.url, java_script_enabled=False)
    expect(page.locator("noscript .notice")).to_be_visible()
    for role in ("tab", "tabpanel", "button", "textbox"):
        expect(page.get_by_role(role)).to_have_count(0)
    expect(page.get_by_text("Any non-empty token passes.")).to_be_visible()
    page.get_by_text("Close codes", exact=True).click()
    expect(page.get_by_role("table")).to_be_visible()


HALF_OUT_OF_SIGHT = "partially obscured by another element"  # what scrolls: axe can't judge that


def barriers(page: Page) -> list[str]:
    """Whatever axe-core finds, of its best practices too, or can't be sure of."""
    result = page.evaluate("axe.run(document)")
    return [
        f"{found['id']}: {node['html'][:120]} {node['failureSummary'][:200]}"
        for found in (*result["violations"], *result["incomplete"])
        for node in found["nodes"]
        if HALF_OUT_OF_SIGHT not in node["failureSummary"]
    ]


LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {**PHONE, "color_scheme": "light"},
    "on its side": {**PHONE, "viewport": {"width": 844, "height": 390}},
    "forced colours": {"forced_colors": "active"},
}


@pytest.mark.parametrize("options", LOOKS.values(), ids=LOOKS)
def test_accessibility(server: Server, visit: Visit, options: dict[str, Any]) -> None:
    page = visit(server.url, **options, reduced_motion="reduce")
    page.route_web_socket(re.compile(r"/ws/\d+$"), lambda socket: talk(socket))
    closing_echo(page, 4499, "")
    page.evaluate(axe_source())
    chat = connected(page, "chat")
    expect(messages(chat, "other")).to_have_count(6)
    send_by_button(chat, "Hello")
    expect(delivery(chat)).to_have_text(["delivered"])
    assert barriers(page) == []
    echo = connected(page, "echo")
    send_by_button(echo, "Hello")
    expect(echo.get_by_role("button", name="Send again")).to_be_visible()
    assert barriers(page) == []
    items = panel(page, "items")
    assert barriers(page) == []
    fill(items, token="", q="many")
    items.get_by_role("button", name="Connect").click()
    expect(items.locator(".problem")).to_be_visible()
    assert barriers(page) == []
    fill(items, q="")
    items.get_by_role("button", name="Connect").click()
    expect(items.locator(".pill")).to_have_text("Refused")
    page.get_by_text("Close codes", exact=True).click()
    assert barriers(page) == []


def send_by_button(shown: Locator, text: str) -> None:
    """Send as every device can."""
    shown.locator("textarea").fill(text)
    shown.get_by_role("button", name="Send", exact=True).click()


def talk(socket: WebSocketRoute) -> None:
    """Everything that a chat can show: six names, an answered message, and one who left."""
    number = socket.url.rsplit("/", 1)[-1]

    def answer(text: str | bytes) -> None:
        socket.send(f"You wrote: {text!s}")
        socket.send(f"Client #{number} says: {text!s}")

    socket.on_message(answer)
    for other in range(6):
        socket.send(f"Client #{other} says: Hello")
    socket.send("Client #3 left the chat")


def test_below_a_root_path(visit: Visit) -> None:
    with running(BELOW_CHAT) as server:
        page = visit(f"{server.url}/chat/")
        attempts: set[str] = set()
        page.on("websocket", lambda socket: attempts.add(socket.url))
        page.reload()
        connected(page, "echo")
        connected(page, "chat")
        connected_item(page, item_id="foo", token="t")
        number = client_id(page)
        host = f"ws://127.0.0.1:{server.port}/chat"
        assert attempts == {f"{host}/ws", f"{host}/ws/{number}", f"{host}/items/foo/ws?token=t"}
