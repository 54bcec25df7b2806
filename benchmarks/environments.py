"""What each server needs, made once: virtual environments, node modules, compiled C, nginx.

Everything goes into `.venv-bench/` in the repository (`make clean` removes it), each environment
with a stamp that says for which packages it is ready; the stamp is written last.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from benchmarks.servers import OURS, Server

__all__ = [
    "HOME",
    "REPOSITORY",
    "Unavailable",
    "command",
    "compiled",
    "interpreter",
    "ours_python",
    "prepare",
    "python_versions",
    "usual_command",
    "version",
]

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
PEERS = HERE / "peers"
HOME = REPOSITORY / ".venv-bench"
INSTALL_DEADLINE = 600  # seconds for one environment
NCHAN = ("nginx-light", "libnginx-mod-nchan")  # Debian's
NGINX_MODULES = Path("/usr/lib/nginx/modules")
TERSE = ("--log-level", "warning", "--no-access-log")  # uvicorn's flags
OUR_PROTOCOLS = (
    *("--ws", "chatserver.server:WebSocketProtocol"),
    *("--http", "chatserver.server:HttpProtocol"),
)
QUIET = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}


class Unavailable(Exception):
    """This server can't be installed here; the message is one sentence that says why."""


def prepare(server: Server) -> None:
    """Install what the server needs, unless that is done.

    Raises:
        Unavailable: It can't be installed here.
    """
    if server.kind == "ours":
        if not ours_python(server).exists():
            raise Unavailable(f"{ours_python(server)} is not there; `make run` makes it")
    elif server.kind in ("uvicorn", "python"):
        _virtual_environment(server)
    elif server.kind in ("node", "bun"):
        _node_modules(server)
    elif server.kind == "nginx":
        _nginx()
    else:
        compiled(PEERS / server.program)


def command(server: Server, port: int, *, compression: bool, folder: Path) -> list[str]:
    """The command that starts a prepared server; `folder` is for its files."""
    if server.kind == "ours":
        return _ours(server, port, compression)
    if server.kind == "uvicorn":
        return [str(_python(server)), *_uvicorn(server.program, port), *TERSE]
    if server.kind == "python":
        return [str(_python(server)), str(PEERS / server.program), str(port)]
    if server.kind == "bun":
        return [str(_bun(server)), str(PEERS / server.program), str(port)]
    if server.kind == "node":
        mode = ["compression"] if compression else []
        return ["node", str(_node_program(server)), str(port), *mode]
    if server.kind == "nginx":
        return ["nginx", "-p", str(folder), "-c", str(_nginx_settings(server, port, folder))]
    return [str(compiled(PEERS / server.program)), str(port), server.mode]


def usual_command(server: Server, port: int, flags: Sequence[str]) -> list[str]:
    """The command as a user gives it: with the server's default limits and log.

    For ours, and for those that run under uvicorn.
    """
    if server.kind == "ours" and not server.program:
        return [str(ours_python(server)), "-m", "chatserver", "run", "--port", str(port), *flags]
    if server.kind == "ours":
        flags = [*OUR_PROTOCOLS, *flags]
    return [str(interpreter(server)), *_uvicorn(server.program, port), *flags]


def interpreter(server: Server) -> Path:
    """The interpreter of the server's environment."""
    return ours_python(server) if server.kind == "ours" else _python(server)


def ours_python(server: Server = OURS) -> Path:
    """The interpreter of the checkout's own environment, in which the package is installed."""
    return (server.checkout or REPOSITORY) / ".venv" / "bin" / "python"


def compiled(source: Path) -> Path:
    """The program made of one file of C.

    Raises:
        Unavailable: There is no gcc, or it fails.
    """
    if shutil.which("gcc") is None:
        raise Unavailable("gcc is missing (Debian: apt install gcc libc6-dev)")
    program = HOME / "c" / source.stem
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_suffix(f".{os.getpid()}")
        _run(["gcc", "-O2", "-Wall", "-Wextra", "-o", str(unfinished), str(source)])
        unfinished.replace(program)
    return program


def version(server: Server) -> str:
    """The name of what was measured, with its version and those of its packages."""
    if server.kind == "ours":
        python = ours_python(server)
        # By the package: the distribution's name has changed, and "before" may have the old one.
        program = "import chatserver; print(chatserver.__version__)"
        others = python_versions(python, "starlette", "uvicorn", "websockets", "uvloop")
        return f"chatserver {_line([str(python), '-P', '-c', program])}, {others}"
    if server.kind in ("uvicorn", "python"):
        names = [re.split(r"[\[<]", name)[0] for name in server.packages]
        below = ("websockets", "uvloop") if server.kind == "uvicorn" else ()
        return python_versions(_python(server), *names, *below)
    if server.kind == "bun":
        return f"bun {_line([str(_bun(server)), '--version'])}"
    if server.kind == "node":
        package = HOME / server.name / "node_modules" / "ws" / "package.json"
        return (
            f"node {_line(['node', '--version'])}, ws {json.loads(package.read_text())['version']}"
        )
    if server.kind == "nginx":
        return _line(["nginx", "-v"]).removeprefix("nginx version: ")
    return _line(["gcc", "--version"])


def _run(arguments: list[str], cwd: Path | None = None) -> str:
    """Run a command to its end, and return what it printed.

    Raises:
        Unavailable: It failed, or took too long.
    """
    try:
        done = subprocess.run(
            arguments,
            cwd=cwd,
            env=os.environ | QUIET,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_DEADLINE,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{arguments[0]} could not be run: {error}") from None
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["it said nothing"])[-1]
        raise Unavailable(f"`{' '.join(arguments[:2])} …` failed: {last}")
    return done.stdout


def _line(arguments: list[str]) -> str:
    return (_run(arguments).splitlines() or [""])[0]


@cache
def python_versions(python: Path, *names: str) -> str:
    """The versions of packages in the environment of an interpreter."""
    program = (
        "import sys; from importlib.metadata import version\n"
        "print(', '.join(f'{name} {version(name)}' for name in sys.argv[1:]))"
    )
    return _line([str(python), "-c", program, *dict.fromkeys(names)])


def _python(server: Server) -> Path:
    return HOME / server.name / "bin" / "python"


def _virtual_environment(server: Server) -> None:
    folder = HOME / server.name
    stamp = folder / ".ready"
    wanted = f"{sys.version}\n{folder}\n{' '.join(server.packages)}\n"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(_python(server)), "-m", "pip", "install", "--quiet", *server.packages])
    stamp.write_text(wanted)


def _node_program(server: Server) -> Path:
    """A copy beside `node_modules`, as node looks for modules where the program is."""
    return HOME / server.name / server.program


def _bun(server: Server) -> Path:
    return HOME / server.name / "node_modules" / ".bin" / "bun"


def _node_modules(server: Server) -> None:
    for tool in ("node", "npm"):  # for Bun, too: npm is how it is installed
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is missing (Debian: apt install nodejs npm)")
    folder = HOME / server.name
    stamp = folder / ".ready"
    wanted = f"{' '.join(server.packages)}\n"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text('{"private": true}\n')
        _run(["npm", "install", "--no-audit", "--no-fund", *server.packages], cwd=folder)
        if server.kind == "bun":
            _run([str(_bun(server)), "--version"])  # a processor may be too old for it
        stamp.write_text(wanted)
    shutil.copy(PEERS / server.program, _node_program(server))


def _nginx() -> None:
    if (NGINX_MODULES / "ngx_nchan_module.so").exists() and shutil.which("nginx"):
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise Unavailable(f"install it first (Debian: apt install {' '.join(NCHAN)})")
    # In runlevel 1 the package does not start a server of its own on port 80.
    quiet = ["env", "RUNLEVEL=1", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    _run([*quiet, "update"])
    _run([*quiet, "install", "-y", "--no-install-recommends", *NCHAN])


def _nginx_settings(server: Server, port: int, folder: Path) -> Path:
    text = (PEERS / server.program).read_text()
    values = {"modules": NGINX_MODULES, "folder": folder, "port": port}
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    settings = folder / "nginx.conf"
    settings.write_text(text)
    return settings


def _uvicorn(application: str, port: int) -> list[str]:
    return [
        *("-m", "uvicorn", f"{application}:app", "--app-dir", str(PEERS)),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]


def _ours(server: Server, port: int, compression: bool) -> list[str]:
    python = str(ours_python(server))
    if server.program:  # an application of its own, under uvicorn
        return [python, *_uvicorn(server.program, port), *TERSE, *OUR_PROTOCOLS]
    # Because one client publishes for all of them.
    flags = ["--port", str(port), "--log-level", "warning", "--max-message-rate", "0"]
    if compression:
        flags += ["--compression", "on"]
    return [python, "-m", "chatserver", "run", *flags]
