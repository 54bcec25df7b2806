"""Applications that a command names: found, made, or refused in one sentence."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette

from chatserver.errors import InvalidSetting
from chatserver.loading import load_application

Write = Callable[..., str]

SOURCE = """
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
print("noise")
app = Starlette()
wrapped = GZipMiddleware(GZipMiddleware(app))
number = 1
class Nested:
    app = app
def create_app():
    print("noise")
    return app
def broken():
    raise ValueError("no database")
def leaving():
    raise SystemExit("no database")
async def plain(scope, receive, send): ...
async def later(): ...
class Itself:
    @property
    def app(self): return self
class Endless:
    @property
    def app(self): return Endless()
class Broken:
    @property
    def app(self): raise ValueError("no database")
itself, endless, shy = Itself(), Endless(), Broken()
first, second = Nested(), Nested()
first.app, second.app = second, first
def __getattr__(name):
    if name == "lazy":
        raise SystemExit("no database")
    raise AttributeError(name)
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module into the current directory, and gives its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)

    def write(source: str, name: str = "loaded_module") -> str:
        (tmp_path / f"{name}.py").write_text(source, "utf-8")
        return name

    yield write
    for name in sys.modules.keys() - before:
        del sys.modules[name]


@pytest.mark.parametrize("attribute", ["app", "wrapped", "Nested.app"])
def test_an_application(write: Write, attribute: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = write(SOURCE)
    app = load_application(f"{name}:{attribute}")
    assert app is sys.modules[name].app
    assert isinstance(app, Starlette)
    assert capsys.readouterr() == ("", "noise\n")


def test_a_factory(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    name = write(SOURCE)
    assert load_application(f"{name}:create_app", factory=True) is sys.modules[name].app
    assert capsys.readouterr() == ("", "noise\nnoise\n")


NONE = [
    ("loaded_module", "expected an application as module:attribute, got 'loaded_module'"),
    (":app", "expected an application as module:attribute, got ':app'"),
    ("nowhere:app", "there is no module 'nowhere', neither here nor installed"),
    ("nowhere.main:app", "there is no module 'nowhere', neither here nor installed"),
    ("json.nowhere:app", "there is no module 'json.nowhere', neither here nor installed"),
    ("loaded_module:ap", "module 'loaded_module' has no attribute 'ap'"),
    ("loaded_module:app.nothing", "module 'loaded_module' has no attribute 'app.nothing'"),
    ("loaded_module:number", "is a int, not an application of Starlette or FastAPI"),
    (
        "loaded_module:create_app",
        "loaded_module:create_app is a function, not an application of Starlette or FastAPI; "
        "with --factory it is called",
    ),
    ("loaded_module:plain", "is a function, not an application"),
    ("loaded_module:itself", "is a Itself, not an application of Starlette or FastAPI"),
    ("loaded_module:first", "is a Nested, not an application of Starlette or FastAPI"),
    ("loaded_module:endless", "is a Endless, not an application of Starlette or FastAPI"),
    ("loaded_module:shy", "loaded_module:shy has no application: ValueError: no database ("),
    ("loaded_module:shy.app", "loaded_module:shy.app has no application: ValueError: no database"),
    ("loaded_module:lazy", "loaded_module:lazy has no application: SystemExit: no database ("),
]


@pytest.mark.parametrize(("target", "sentence"), NONE)
def test_no_application(write: Write, target: str, sentence: str) -> None:
    write(SOURCE)
    with pytest.raises(InvalidSetting) as refused:
        load_application(target)
    assert sentence in str(refused.value)


FACTORIES = [
    ("number", "loaded_module:number is a int, not a function"),
    ("broken", "loaded_module:broken makes no application: ValueError: no database"),
    ("leaving", "loaded_module:leaving makes no application: SystemExit: no database"),
    ("plain", "loaded_module:plain makes no application: TypeError: "),
    ("later", "loaded_module:later made a coroutine, not an application of Starlette or FastAPI; "),
    ("Itself", "loaded_module:Itself made a Itself, not an application of Starlette or FastAPI"),
    ("Nested", "loaded_module:Nested made a Nested, not an application of Starlette or FastAPI"),
]


@pytest.mark.parametrize(("attribute", "sentence"), FACTORIES)
def test_no_factory(write: Write, attribute: str, sentence: str) -> None:
    write(SOURCE.replace("    app = app\n", "    pass\n"))
    with pytest.raises(InvalidSetting) as refused:
        load_application(f"loaded_module:{attribute}", factory=True)
    assert str(refused.value).startswith(sentence)
    assert "\n" not in str(refused.value)


BROKEN = [
    ("import nowhere_else", "ModuleNotFoundError: No module named 'nowhere_else'", 1),
    ("\n1 / 0", "ZeroDivisionError: division by zero", 2),
    ("raise SystemExit(0)", "SystemExit: 0", 1),
]


@pytest.mark.parametrize(("source", "reason", "line"), BROKEN)
def test_a_module_that_fails(write: Write, source: str, reason: str, line: int) -> None:
    name = write(source)
    with pytest.raises(InvalidSetting) as refused:
        load_application(f"{name}:app")
    place = Path.cwd() / f"{name}.py"
    assert str(refused.value) == (
        f"module {name!r} can't be imported: {reason} ({place}, line {line})"
    )


def test_a_module_that_is_no_python(write: Write) -> None:
    name = write("def (:")
    with pytest.raises(InvalidSetting, match=r"can't be imported: SyntaxError: invalid syntax"):
        load_application(f"{name}:app")
