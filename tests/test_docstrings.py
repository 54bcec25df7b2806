"""Docstrings, taken apart."""

import pytest

from chatserver.asyncapi.docstrings import read_docstring

FORMS: list[tuple[str | None, str, str, dict[str, str]]] = [
    (None, "", "", {}),
    ("", "", "", {}),
    ("One line.", "One line.", "", {}),
    ("\n    Over two\n    lines.\n    ", "Over two lines.", "", {}),
    ("First.\n\n    Second.\n\n        code\n    ", "First.", "Second.\n\n    code", {}),
    (
        """First.

        Attributes:
            a: About a,
                in two lines.
            b (int): About b.

                In two paragraphs.
            c:

        The end.
        """,
        "First.",
        "The end.",
        {"a": "About a, in two lines.", "b": "About b. In two paragraphs.", "c": ""},
    ),
    ("\n    Attributes:\n        a: About `a: b`.", "", "", {"a": "About `a: b`."}),
    ("First.\n\nAttributes: of it.", "First.", "Attributes: of it.", {}),
]


@pytest.mark.parametrize(("text", "summary", "description", "attributes"), FORMS)
def test_docstrings(
    text: str | None, summary: str, description: str, attributes: dict[str, str]
) -> None:
    found = read_docstring(text)
    assert found == (summary, description, attributes)
    assert "" not in found.fields().values()
