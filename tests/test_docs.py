"""README and docs: their tables, links and commands hold what they promise, and so do the types.

Their snippets are run in test_snippets.py.
"""

import os
import posixpath
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx2
import jwt
import pytest
from starlette.testclient import TestClient
from uvicorn import main as uvicorn_command
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

import chatserver
from chatserver import cli
from chatserver.app import create_app
from chatserver.endpoints import base
from chatserver.errors import CLOSE_CODES
from chatserver.hub import Statistics
from chatserver.settings import Settings
from chatserver.testing import live_server
from tests.pages import BLOCKS, PAGES, ROOT, anchors, links, table

SECRET = "correct-horse-battery-staple-0123456789"
README = PAGES["README.md"]
ALL = "\n".join(PAGES.values())


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


# The tables


def test_settings() -> None:
    expected = [
        [row.flag, row.env, row.default, row.unit or "–", row.help] for row in Settings.describe()
    ]
    header = ("flag", "environment", "default", "unit", "meaning")
    assert table("docs/settings.md", *header) == expected


def test_close_codes() -> None:
    expected = [
        [str(row.code), row.meaning, "yes" if row.retry else "no", row.sender]
        for row in CLOSE_CODES.values()
    ]
    header = ("code", "meaning", "come back?", "sent by")
    assert table("docs/close-codes.md", *header) == expected


def described(part: str) -> list[str]:
    """The names that a section of the docstring of `Endpoint` describes."""
    doc = base.Endpoint.__doc__ or ""
    section = re.search(rf"^    {part}:\n((?:        .*\n|\n)+)", doc, re.MULTILINE)
    assert section is not None
    return re.findall(r"^        (?:- `)?(\w+)`?:", section[1], re.MULTILINE)


def test_class_attributes() -> None:
    rows = table("docs/guide/endpoints.md", "attribute", "default", "what it says")
    assert [name for name, *_ in rows] == described("Class attributes")
    defaults = {name: default for name, default, _ in rows}
    found = {name: repr(getattr(base.Endpoint, name)).replace("'", '"') for name in defaults}
    assert defaults == found


def test_instance_attributes() -> None:
    rows = table("docs/guide/endpoints.md", "attribute", "what it is")
    assert {name for name, _ in rows} == {*described("Attributes"), "channel"}


def test_statistics() -> None:
    rows = table("docs/guide/server.md", "name", "what it counts")
    told = re.findall(r"`(\w+)`", "".join(f"`{name}` {text}" for name, text in rows))
    assert {*told} - {"linger"} == {*Statistics.__struct_fields__}


def test_performance_in_brief() -> None:
    page = PAGES["docs/performance.md"]
    full = [re.split(r" *\| *", line) for line in page.splitlines()]
    rows = {line[1]: line for line in full if len(line) > 13}
    columns = [rows["chatserver (ours)"], rows["Bun"], rows["FastAPI tutorial"]]
    expected = [[row[index] for row in columns] for index in (2, 3, 5)]
    brief = re.findall(r"^\| (?:one message|eight|a hundred)[^|]*\|(.+)\|$", README, re.MULTILINE)
    assert [[cell.strip() for cell in line.split("|")] for line in brief] == expected


# Types


def test_the_snippets_pass_mypy_strict(tmp_path: Path) -> None:
    python = [block for block in BLOCKS if block.language == "python"]
    for block in python:
        name = re.sub(r"\W+", "_", block.name).lower()
        (tmp_path / f"{name}.py").write_text(block.text, "utf-8")
    assert len(list(tmp_path.iterdir())) == len(python) > 20
    # Of the package only the types count, as where it is installed.
    options = ["--strict", "--config-file=", "--follow-imports=silent", "--pretty"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, f"--cache-dir={ROOT / '.mypy_cache/docs'}", "."],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# Tokens, proxies, the page


def test_the_command_makes_the_token_that_it_is_said_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHATSERVER_TOKEN_SECRET", SECRET)
    (commands,) = (
        block.text
        for block in BLOCKS
        if block.name == "docs/guide/tokens.md: Make one"
        if not block.language
    )
    (command,) = (line for line in commands.splitlines() if line.startswith("chatserver token"))
    assert cli.main(shlex.split(command)[1:]) == 0
    token = capsys.readouterr().out.strip()
    claims = jwt.decode(token, SECRET, algorithms=["HS256"])
    assert (claims["sub"], claims["channels"]) == ("ann", ["item:foo"])
    assert claims["exp"] - claims["iat"] == pytest.approx(3600, abs=1)


def test_behind_a_proxy() -> None:
    app = create_app(Settings(root_path="/chat"))
    with live_server(app, root_path="/chat") as server:
        assert 'data-path="/chat/ws"' in httpx2.get(f"{server.http}/").text
        origin = server.http.replace("http:", "https:")
        headers = {"X-Forwarded-Proto": "https", "Origin": origin}
        with connect(f"{server.ws}/ws", additional_headers=headers) as client:
            client.send("hi")
            assert client.recv(timeout=5) == "Message text was: hi"
        with pytest.raises(InvalidStatus):
            connect(f"{server.ws}/ws", additional_headers={"Origin": origin}).__enter__()


def test_a_page_of_your_own(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine: {{ paths['echo'] }}")
    with TestClient(create_app(Settings(templates=tmp_path))) as client:
        assert client.get("/").text == "mine: /ws"


# What is named is there


def test_every_public_name_is_in_the_reference() -> None:
    reference = "".join(text for page, text in PAGES.items() if page.startswith("docs/reference/"))
    missing = {name for name in chatserver.__all__ if not re.search(rf"\b{name}\b", reference)}
    assert missing == set()


LINKS = [(page, link) for page in PAGES for link in sorted(links(page))]


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_link(page: str, link: str) -> None:
    if re.match(r"https?://", link):
        return
    path, _, anchor = link.partition("#")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
    assert (ROOT / target).exists()
    if anchor:
        assert anchor in anchors(target)


def test_every_page_is_linked() -> None:
    found = {
        posixpath.normpath(posixpath.join(posixpath.dirname(page), link.partition("#")[0]))
        for page, link in LINKS
    }
    assert set(PAGES) - found == {"README.md"}


def test_every_reference_of_the_readme_is_defined_and_used() -> None:
    defined = re.findall(r"^\[([^\]]+)\]: ", README, re.MULTILINE)
    assert sorted(set(re.findall(r"\]\[([^\]]+)\]", README))) == sorted(defined)


def test_every_example_is_linked() -> None:
    examples = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert examples <= links("examples/README.md")


def test_every_page_is_in_the_navigation() -> None:
    nav = re.findall(r"^ +- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    pages = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
    assert sorted(nav) == sorted(pages)


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", ALL, re.MULTILINE))
    found = {first or second for first, second in named}
    assert {"run", "test", "docs"} <= found <= targets


def test_every_flag_exists(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "token", "publish", "asyncapi"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    known |= {option for param in uvicorn_command.params for option in param.opts}
    pages = "\n".join(text for page, text in PAGES.items() if page not in MANY_PROGRAMS)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", pages)) <= known


#: Pages that show the flags of other programs, too.
MANY_PROGRAMS = {"docs/deployment.md", "docs/troubleshooting.md", "docs/security.md"}


def test_every_make_target_has_its_row() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert "| `make docs` |" in contributing
