"""Take the pictures for README and docs: page.png, page-dark.png, page-phone.png, tryit.png.

A real server on a free port, three browser tabs that chat, and a fourth that leaves. The clock
is stopped, and numbers and texts are fixed, so that only a change of the page changes the pictures.
"""

import argparse
import base64
import re
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.browser import find_chromium, launched, running  # noqa: E402

DESK = {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"}
NIGHT = {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "color_scheme": "light",
    "is_mobile": True,
    "has_touch": True,
}
NOON = "2026-01-01T12:00:00Z"
PORT_SHOWN = "8000"  # the real port is a different one in each run

# Reduces a picture to a palette: the 256 most frequent colours, every other to its nearest.
# Runs in the browser, which can decode a picture quickly.
QUANTISE = """async (png) => {
    const blob = await (await fetch(`data:image/png;base64,${png}`)).blob();
    const bitmap = await createImageBitmap(blob);
    const { width, height } = bitmap;
    const canvas = new OffscreenCanvas(width, height).getContext("2d");
    canvas.drawImage(bitmap, 0, 0);
    const pixels = canvas.getImageData(0, 0, width, height).data;
    const counts = new Map();
    for (let at = 0; at < pixels.length; at += 4) {
        const colour = (pixels[at] << 16) | (pixels[at + 1] << 8) | pixels[at + 2];
        counts.set(colour, (counts.get(colour) ?? 0) + 1);
    }
    const byCount = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a) || a - b);
    const palette = byCount.slice(0, 256);
    const channels = (colour) => [colour >> 16, (colour >> 8) & 255, colour & 255];
    const distance = (one, other) => {
        const [a, b] = [channels(one), channels(other)];
        return a.reduce((sum, value, i) => sum + (value - b[i]) ** 2, 0);
    };
    const index = new Map(palette.map((colour, i) => [colour, i]));
    for (const colour of byCount.slice(256)) {
        let best = 0;
        for (let i = 1; i < palette.length; i++)
            if (distance(colour, palette[i]) < distance(colour, palette[best])) best = i;
        index.set(colour, best);
    }
    let indices = "";
    for (let at = 0; at < pixels.length; at += 4)
        indices += String.fromCharCode(
            index.get((pixels[at] << 16) | (pixels[at + 1] << 8) | pixels[at + 2]));
    return { width, height, palette: palette.flatMap(channels), indices: btoa(indices) };
}"""


def visit(browser: Browser, url: str, client_id: int, options: dict[str, Any]) -> Page:
    """Open the page as a client with a number, and show its chat."""
    context = browser.new_context(
        **options,
        device_scale_factor=2,
        locale="en-GB",
        timezone_id="UTC",
        reduced_motion="reduce",
    )
    context.clock.set_fixed_time(NOON)
    context.add_init_script(f"sessionStorage.setItem('chatserver.client-id', '{client_id}')")
    page = context.new_page()
    page.goto(f"{url}/#chat")
    expect(page.locator("#panel-chat .pill")).to_have_text("Connected")
    return page


def say(writer: Page, everyone: list[Page], text: str) -> None:
    """Write to the chat, and wait until everyone has read it."""
    writer.locator("#panel-chat textarea").fill(text)
    writer.locator("#panel-chat .send").click()
    for page in everyone:
        expect(page.locator("#panel-chat .message .text").last).to_have_text(text)
    expect(writer.locator("#panel-chat .delivery").last).to_have_text("delivered")


def chat(browser: Browser, url: str) -> list[Page]:
    """What the pictures show: three clients that chat, and one that leaves."""
    desk, night, phone = pages = [
        visit(browser, url, 4821, DESK),
        visit(browser, url, 17, NIGHT),
        visit(browser, url, 92, PHONE),
    ]
    passer_by = visit(browser, url, 305, DESK)
    say(desk, pages, "Good morning! Who is here?")
    say(night, pages, "Client 17, in the dark as always.")
    say(phone, pages, "And I am on the phone. One socket each.")
    say(desk, pages, "Then close your laptop for a minute: it comes back by itself.")
    passer_by.context.close()
    for page in pages:
        expect(page.locator("#panel-chat .log")).to_contain_text("Client #305 left the chat")
    say(night, pages, "Back again, and my draft was still there.")
    return pages


def tried(browser: Browser, url: str, options: dict[str, Any]) -> Page:
    """The try-it page with an order that was answered."""
    context = browser.new_context(
        **options, device_scale_factor=2, locale="en-GB", timezone_id="UTC"
    )
    context.clock.set_fixed_time(NOON)
    page = context.new_page()
    page.goto(f"{url}/docs")
    shown = page.locator(".view:not([hidden])")
    shown.get_by_label("shop").fill("corner")
    shown.get_by_role("button", name="Connect", exact=True).click()
    expect(shown.locator(".pill")).to_have_text("Connected")
    for label, text in (("name", "tea"), ("count", "2"), ("city", "Oslo")):
        shown.get_by_label(label).fill(text)
    shown.get_by_role("button", name="Send", exact=True).click()
    shown.locator(".frame.received .head").click()
    shown.locator(".after").evaluate("node => { node.textContent = 'next frame after 1.2 ms' }")
    return page


def picture(page: Page) -> bytes:
    """The page as it stands, as a PNG with a palette."""
    page.get_by_role("tab", selected=True).first.focus()
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.locator(".address, .url").evaluate_all(
        "(all, port) => all.forEach((node) =>"
        " (node.textContent = node.textContent.replace(/:[0-9]+/, `:${port}`)))",
        PORT_SHOWN,
    )
    taken = base64.b64encode(page.screenshot()).decode()
    blank = page.context.browser.new_page()  # type: ignore[union-attr]
    reduced = blank.evaluate(QUANTISE, taken)
    blank.close()
    return png(
        reduced["width"],
        reduced["height"],
        bytes(reduced["palette"]),
        base64.b64decode(reduced["indices"]),
    )


def png(width: int, height: int, palette: bytes, indices: bytes) -> bytes:
    """A PNG file of one byte per pixel, unfiltered, as suits a palette (PNG, section 12.7)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    rows = (b"\0" + indices[at : at + width] for at in range(0, width * height, width))
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"PLTE", palette),
            chunk(b"IDAT", zlib.compress(b"".join(rows), 9)),
            chunk(b"IEND", b""),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=re.sub(r"\s+", " ", __doc__ or ""),
        epilog="Needs Playwright for Python, and a Chromium on PATH or named by CHROMIUM.",
    )
    parser.add_argument("--into", type=Path, default=ROOT / "docs", help="folder (docs)")
    into: Path = parser.parse_args().into
    executable = find_chromium()
    if executable is None:
        parser.exit(1, "No Chromium on PATH: install one or set CHROMIUM.\n")
    into.mkdir(parents=True, exist_ok=True)
    names = ("page", "page-dark", "page-phone", "tryit")
    with (
        running() as server,
        running("tests.tried:app") as other,
        launched(executable) as browser,
    ):
        pages = [*chat(browser, server.url), tried(browser, other.url, DESK)]
        for name, page in zip(names, pages, strict=True):
            path = into / f"{name}.png"
            path.write_bytes(picture(page))
            print(f"{path}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
