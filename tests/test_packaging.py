import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".coverage*"
)

# What a user sees of an installation: where it came from, the page, and what the page needs.
VISIT = """
import json, re
from starlette.testclient import TestClient
import chatserver
from chatserver.app import app

with TestClient(app) as client:
    page = client.get("/")
    assets = re.findall(r'(?:href|src)="([^"#]*/static/[^"]+)"', page.text)
    statuses = {asset: client.get(asset).status_code for asset in assets}
print(json.dumps({
    "file": chatserver.__file__, "status": page.status_code, "text": page.text, "assets": statuses
}))
"""


def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def lines(section: str, option: str) -> list[str]:
    """The entries of an option with one entry a line."""
    entries = config()[section][option].strip().splitlines()
    return [entry for entry in entries if not entry.startswith("#")]


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; it knows nothing of our environment variables, nor of make's.

    Raises:
        AssertionError: The command failed; with all that it printed.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CHATSERVER_", "PYTHON", "MAKE", "MFLAGS", "VENV"))
    }
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_of_the_tree(folder: Path) -> Path:
    return Path(shutil.copytree(ROOT, folder / "tree", ignore=NOT_COPIED))


class Built(NamedTuple):
    sdist: Path
    wheel: Path
    wheel_of_sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The distributions, built once, with the setuptools that is here: nothing is downloaded."""
    folder = tmp_path_factory.mktemp("built")
    tree = copy_of_the_tree(folder)
    build = (sys.executable, "-m", "build", "--no-isolation")
    run(*build, "--outdir", folder / "released", cwd=tree)  # the sdist, and the wheel out of it
    run(*build, "--wheel", "--outdir", folder / "direct", cwd=tree)
    (sdist,) = (folder / "released").glob("*.tar.gz")
    (wheel_of_sdist,) = (folder / "released").glob("*.whl")
    (wheel,) = (folder / "direct").glob("*.whl")
    return Built(sdist, wheel, wheel_of_sdist)


def environment(folder: Path, wheel: Path | None = None) -> Path:
    """A new environment with nothing in it but the wheel; what that requires is borrowed.

    The borrowed folder is named in a .pth file, whose own .pth files do not count: so our editable
    installation is not borrowed with it.

    Returns:
        The folder of its commands.
    """
    venv.create(folder, with_pip=False)
    python = next(folder.glob("[Bb]*/python*"))
    if wheel is not None:
        pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
        run(*pip, "--no-index", "--no-deps", "--disable-pip-version-check", wheel, cwd=folder)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", where, cwd=folder).strip())
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "borrowed.pth").write_text("\n".join(sorted(borrowed)), "utf-8")
    return python.parent


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def files(folder: Path, prefix: str) -> set[str]:
    """The files below a folder, as the wheel names them."""
    return {
        f"{prefix}/{path.relative_to(folder).as_posix()}"
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_packages_listed_are_those_on_disk() -> None:
    package = ROOT / "chatserver"
    folders = {path.parent for path in package.rglob("*.py")}
    on_disk = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(lines("options", "packages")) == on_disk | {"chatserver.templates"}
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_templates_are_no_python() -> None:
    assert not list((ROOT / "templates").rglob("*.py"))


def test_the_version_can_be_read_without_importing() -> None:
    tree = ast.parse((ROOT / "chatserver" / "__init__.py").read_text("utf-8"))
    (value,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert isinstance(value, ast.Constant)
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", str(value.value))


def test_the_changelog_tells_of_this_version() -> None:
    from chatserver import __version__

    assert re.search(
        rf"^## .*\b{re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M
    )


def test_every_dependency_is_explained() -> None:
    required = lines("options", "install_requires")
    for extra in config()["options.extras_require"]:
        required += lines("options.extras_require", extra)
    projects = {re.split(r"[^\w.-]", line)[0] for line in required} - {"starlette-chatserver"}
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert {name for name in projects if f"| {name} |" not in text} == set()


def test_make_run_passes_broker_and_workers_on(tmp_path: Path) -> None:
    """The broker by the environment, which other users of the machine can't read."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$CHATSERVER_BROKER $*"\n')
    python.chmod(0o755)
    given = (f"BIN={tmp_path}", "BROKER=redis://:p%40ss@localhost", "WORKERS=2")
    printed = run(
        "make", "--no-print-directory", "-o", ".venv/.ready-to-run", "run", *given, cwd=ROOT
    )
    assert printed.split() == [
        "redis://:p%40ss@localhost", "-m", "chatserver", "run", "--workers", "2"
    ]  # fmt: skip


def test_make_lists_every_target() -> None:
    targets = re.findall(r"^\.PHONY: ([a-z-]+)$", (ROOT / "Makefile").read_text("utf-8"), re.M)
    listed = re.findall(r"^make ([a-z-]+) +\S", run("make", cwd=ROOT), re.M)
    assert listed == targets


def test_the_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    expected = files(ROOT / "chatserver", "chatserver")
    expected |= files(ROOT / "templates", "chatserver/templates")
    assert {name for name in names(built.wheel) if ".dist-info/" not in name} == expected
    assert "chatserver/py.typed" in expected


def test_the_wheel_is_the_same_out_of_the_sdist(built: Built) -> None:
    assert names(built.wheel_of_sdist) == names(built.wheel)


def test_the_sdist_holds_what_its_tests_need(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = files(ROOT / "tests", "tests") | files(ROOT / "templates", "templates")
    wanted |= {"Makefile", "setup.cfg", "pyproject.toml", "ruff.toml", "LICENSE", "README.md"}
    assert wanted - held == set()


@pytest.fixture(scope="module")
def from_wheel(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment elsewhere, into which the wheel is installed."""
    return environment(tmp_path_factory.mktemp("from_wheel"), built.wheel)


@pytest.fixture(scope="module")
def from_editable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for an editable installation of a copy of the tree."""
    folder = tmp_path_factory.mktemp("from_editable")
    tree = copy_of_the_tree(folder)
    hook = f"import setuptools.build_meta as b; b.build_editable({str(folder)!r})"
    run(sys.executable, "-c", hook, cwd=tree)
    (wheel,) = folder.glob("*.whl")
    return environment(folder / "venv", wheel)


@pytest.fixture(scope="module")
def from_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same where nothing was installed, beside a copy of the tree."""
    folder = tmp_path_factory.mktemp("from_checkout")
    copy_of_the_tree(folder)
    return environment(folder / "venv")


def see_the_page(commands: Path, cwd: Path) -> Path:
    """Visit the page of an installation, and check it.

    Returns:
        Where the package was imported from.
    """
    seen = json.loads(run(commands / "python", "-c", VISIT, cwd=cwd))
    assert seen["status"] == 200
    assert seen["text"].lower().startswith("<!doctype html>")
    assert seen["assets"]
    assert set(seen["assets"].values()) == {200}
    return Path(seen["file"]).parent


def test_a_wheel_installed_elsewhere_shows_the_page(from_wheel: Path, tmp_path: Path) -> None:
    package = see_the_page(from_wheel, tmp_path)
    assert package.is_relative_to(from_wheel.parent)
    assert (package / "templates" / "index.html").is_file()


def test_an_editable_installation_shows_the_page(from_editable: Path, tmp_path: Path) -> None:
    package = see_the_page(from_editable, tmp_path)
    assert package == from_editable.parent.parent / "tree" / "chatserver"


def test_a_checkout_without_installation_shows_the_page(from_checkout: Path) -> None:
    tree = from_checkout.parent.parent / "tree"
    assert see_the_page(from_checkout, tree) == tree / "chatserver"


def command(commands: Path) -> tuple[str | Path, ...]:
    return (commands / "chatserver",)


def module(commands: Path) -> tuple[str | Path, ...]:
    return (commands / "python", "-m", "chatserver")


@pytest.mark.parametrize("called", [command, module])
def test_the_command_is_installed(
    called: Callable[[Path], tuple[str | Path, ...]], from_wheel: Path, tmp_path: Path
) -> None:
    from chatserver import __version__

    printed = run(*called(from_wheel), "--version", cwd=tmp_path)
    assert printed.strip() == f"chatserver {__version__}"
