"""What a type checker of our users sees: pyright, in the edition that brings its own Node."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pyright(folder: Path, *arguments: str) -> str:
    """What it prints, where our package and all that it needs are installed."""
    command = Path(sysconfig.get_path("scripts")) / "basedpyright"
    where = os.pathsep.join((str(ROOT), sysconfig.get_path("purelib")))
    done = subprocess.run(
        [command, "--pythonpath", sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": where},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project of somebody's, beside ours, in which every type has to be known."""
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict"}))
    return tmp_path


def test_the_types_of_what_we_offer_are_known(folder: Path) -> None:
    told = pyright(folder, "--verifytypes", "chatserver", "--ignoreexternal")
    assert "With unknown type: 0" in told
    score = re.search(r"Type completeness score: ([\d.]+)%", told)
    assert score is not None, told
    assert float(score[1]) >= 98, told


def test_the_examples_pass_in_its_strictest_mode(folder: Path) -> None:
    for example in (ROOT / "examples").glob("*.py"):
        shutil.copy(example, folder)
    assert pyright(folder, ".").startswith("0 errors")


def test_a_mistake_is_seen(folder: Path) -> None:
    (folder / "room.py").write_text(
        "from chatserver import Endpoint, FromPath\n"
        "class Room(Endpoint):\n"
        "    number: FromPath[int]\n"
        "    async def on_accept(self, websocket: int) -> None:\n"
        "        print(self.number.upper())\n"
    )
    told = pyright(folder, "room.py")
    assert 'Attribute "upper" is unknown' in told
    assert 'Method "on_accept" overrides class "Endpoint" in an incompatible manner' in told


def test_the_type_of_the_user_is_known_where_a_class_says_it(folder: Path) -> None:
    (folder / "room.py").write_text(
        "from chatserver import Endpoint\n"
        "class Room(Endpoint[str]):\n"
        "    async def on_accept(self, websocket: object) -> None:\n"
        "        self.user.upper()\n"
        "        self.user.lowest()\n"
        "class Bare(Endpoint):\n"
        "    async def on_accept(self, websocket: object) -> None:\n"
        "        self.user.anything()\n"
    )
    told = pyright(folder, "room.py")
    assert 'Cannot access attribute "lowest" for class "str"' in told
    assert "upper" not in told
    assert "anything" not in told


def test_the_type_of_a_dependency_is_known(folder: Path) -> None:
    (folder / "room.py").write_text(
        "from typing import Annotated\n"
        "import fastapi\n"
        "from chatserver import Depends, Endpoint\n"
        "def name() -> str:\n"
        "    return 'ann'\n"
        "class Room(Endpoint[str]):\n"
        "    user: Annotated[str, Depends(name)]\n"
        "    other: Annotated[str, fastapi.Depends(name)]\n"
        "    older: str = Depends(name)\n"
        "    async def on_accept(self, websocket: object) -> None:\n"
        "        print(self.user.upper(), self.other.upper(), self.older.upper())\n"
        "        print(self.user.no1(), self.other.no2(), self.older.no3())\n"
    )
    told = pyright(folder, "room.py")
    for name in ("no1", "no2", "no3"):
        assert f'Cannot access attribute "{name}" for class "str"' in told
    assert "upper" not in told
    assert "overrides" not in told
