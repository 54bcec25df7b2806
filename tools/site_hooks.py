"""What the documentation needs to be a site as well as files; mkdocs.yml names this as a hook.

A page may link to a file of the repository that is no page. On the site an example becomes a page
of its own; a link to any other file becomes the text that it has.
"""

import importlib
import posixpath
import re
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>\.\./[^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Make a page of each example."""
    # Not at the head: mkdocs is only installed where the site is built.
    structure = importlib.import_module("mkdocs.structure.files")
    for path in sorted(EXAMPLES.glob("*.py")):
        name = f"examples/{path.stem}.md"
        content = f"# {path.name}\n\n```python\n{path.read_text('utf-8')}```\n"
        hidden = structure.InclusionLevel.NOT_IN_NAV
        files.append(structure.File.generated(config, name, content=content, inclusion=hidden))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links that lead out of docs/."""
    folder = posixpath.dirname(page.file.src_uri)
    return LINK.sub(lambda link: _turned(link, folder), markdown)


def _turned(link: re.Match[str], folder: str) -> str:
    path = posixpath.normpath(posixpath.join(folder, link["target"]))
    if not path.startswith("../"):
        return link[0]
    if example := re.fullmatch(r"\.\./(examples/\w+)\.py", path):
        return f"[{link['text']}]({posixpath.relpath(example[1] + '.md', folder or '.')})"
    return link["text"]
