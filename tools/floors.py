"""Prints the lowest versions that setup.cfg allows, as constraints for pip.

`make test-floors` installs exactly these. A requirement pinned otherwise, as ruff is, has none.
"""

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLOOR = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,-]+\])?>=(?P<version>[\w.]+)")


def floors(setup: str) -> list[str]:
    """A constraint `name==version` for each line `name>=version` of the requirements."""
    parser = configparser.ConfigParser()
    parser.read_string(setup)
    texts = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    lines = [line for text in texts for line in text.splitlines()]
    return [
        f"{found['name']}=={found['version']}" for line in lines if (found := FLOOR.match(line))
    ]


if __name__ == "__main__":
    print("\n".join(floors((ROOT / "setup.cfg").read_text("utf-8"))))
