"""The pages that people read, README and docs, taken apart for tests."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["BLOCKS", "PAGES", "ROOT", "Block", "anchors", "links", "table"]

ROOT = Path(__file__).resolve().parent.parent
#: The text of each page by its path in the repository.
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in [
        ROOT / "README.md",
        ROOT / "examples" / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
}


class Block(NamedTuple):
    """A fenced block, with the page and the heading under which it stands."""

    page: str
    heading: str
    language: str
    text: str

    @property
    def name(self) -> str:
        """Page and heading: "docs/guide/tokens.md: Open mode"."""
        return f"{self.page}: {self.heading}"


def _blocks(page: str) -> Iterator[Block]:
    heading, language, lines = "", None, list[str]()
    for line in PAGES[page].splitlines():
        if line.startswith("```"):
            if language is not None:
                yield Block(page, heading, language, "\n".join(lines) + "\n")
            language, lines = (line[3:] if language is None else None), []
        elif language is not None:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")


BLOCKS = [block for page in PAGES for block in _blocks(page)]


def _prose(page: str) -> str:
    return re.sub(r"^```.*?^```", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)


def table(page: str, *header: str) -> list[list[str]]:
    """The rows of the table that begins with this header, without backticks."""
    lines = PAGES[page].splitlines()
    start = lines.index(f"| {' | '.join(header)} |")
    assert set(lines[start + 1]) == set("|- ")
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


def links(page: str) -> set[str]:
    """What a page links to or shows, written there or in a definition at its foot."""
    text = re.sub(r"`[^`\n]*`", "", _prose(page))
    written = re.findall(r"\]\(([^)\s]+)\)", text)
    return {*written, *re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)}


def anchors(page: str) -> set[str]:
    """The anchors that a page's headings get."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
