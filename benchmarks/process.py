"""A process on one core: started, watched, and ended with all processes that it has started.

It reads `/proc`, so it needs Linux, as the whole benchmark does.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

__all__ = ["NotServing", "Process", "cores", "free_port", "pinned"]

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


class NotServing(Exception):
    """A server did not start, or ended; the message has the last line of its log."""


def cores() -> tuple[int, int]:
    """The server's core and the generator's; the same one if there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Child processes started in this context run on that core only; this thread is put back."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A context: the process runs in it, in a session of its own, and is killed at its end.

    It is killed at once: a graceful end with thousands of connections is not what is measured.
    Without a core the system places it.
    """

    def __init__(
        self,
        arguments: list[str],
        *,
        core: int | None = None,
        log: Path,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self.log = log
        self._arguments = arguments
        self._core = core
        self._stdin = stdin
        self._log_file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CHATSERVER_")}
        talks = self._stdin == subprocess.PIPE
        self._log_file = self.log.open("wb")
        try:
            with nullcontext() if self._core is None else pinned(self._core):
                self.popen = subprocess.Popen(
                    self._arguments,
                    cwd=self.log.parent,
                    env=environment,
                    stdin=self._stdin,
                    stdout=subprocess.PIPE if talks else self._log_file,
                    stderr=self._log_file,
                    start_new_session=True,
                )
        except OSError as error:
            self._log_file.close()
            raise NotServing(str(error)) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout, self._log_file):
            if stream is not None:
                stream.close()

    def wait_for_port(self, port: int, seconds: float = 30) -> None:
        """Return when a connection there is accepted.

        Raises:
            NotServing: It did not within the time, or the process has ended.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.popen.poll() is not None:
                raise NotServing(
                    f"it ended with status {self.popen.returncode}: {self.last_words()}"
                )
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise NotServing(f"nothing listened within {seconds:g} seconds: {self.last_words()}")

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text("utf-8", "replace").strip().splitlines()
        return lines[-1][-300:] if lines else "it said nothing"

    def memory(self) -> int:
        """Resident bytes of the process and all others in its session."""
        total = 0
        for pid in self._pids():
            try:
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
            except (OSError, IndexError):  # the process has just ended
                continue
        return total

    def reset_peak(self) -> int:
        """Reset the peak; returns the bytes that are resident now, of this process alone."""
        Path(f"/proc/{self.popen.pid}/clear_refs").write_text("5")
        return self.peak()

    def peak(self) -> int:
        """The most resident bytes since `reset_peak`, of this process alone."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    def cpu(self) -> float:
        """Seconds of processor time used by all processes of the session."""
        return sum(sum(map(int, fields[11:13])) for fields in self._stats()) / TICKS

    def cpu_of_all(self) -> float:
        """The same with descendants in sessions of their own, and with those that have ended."""
        stats = {int(fields[-1]): fields for fields in _all_stats()}
        found = {self.popen.pid}
        while more := {pid for pid, fields in stats.items() if int(fields[1]) in found} - found:
            found |= more
        return sum(sum(map(int, stats[pid][11:15])) for pid in found & stats.keys()) / TICKS

    def _pids(self) -> list[int]:
        return [int(fields[-1]) for fields in self._stats()]

    def _stats(self) -> Iterator[list[str]]:
        return (fields for fields in _all_stats() if int(fields[3]) == self.popen.pid)


def _all_stats() -> Iterator[list[str]]:
    """The fields of /proc/*/stat after the name, then the number of the process."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if len(fields) > 20:
            yield [*fields, path.parent.name]
