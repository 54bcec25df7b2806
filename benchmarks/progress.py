"""Progress: a bar by `rich` on a terminal, lines for a log file, or nothing."""

# mypy: disable-error-code="import-not-found"

import sys
from types import TracebackType
from typing import Self

__all__ = ["Bar", "Lines", "Silent", "progress"]


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def begin(self, total: int) -> None:
        return None

    def tell(self, text: str) -> None:
        return None

    def step(self) -> None:
        return None


class Lines(Silent):
    """One line for each step: for a log file."""

    def __init__(self) -> None:
        self.done = self.total = 0

    def begin(self, total: int) -> None:
        self.total = total

    def tell(self, text: str) -> None:
        print(f"[{self.done}/{self.total or '?'}] {text}", file=sys.stderr, flush=True)

    def step(self) -> None:
        self.done += 1


class Bar(Silent):
    """A bar with the time left. It is drawn twice a second, which costs the generator little."""

    def __init__(self) -> None:
        from rich import progress as rich

        self._rich = rich.Progress(
            rich.BarColumn(bar_width=30),
            rich.MofNCompleteColumn(),
            rich.TimeElapsedColumn(),
            rich.TimeRemainingColumn(),
            rich.TextColumn("{task.description}", markup=False),
            refresh_per_second=2,
            transient=True,
        )
        self._task = self._rich.add_task("", total=None)

    def __enter__(self) -> Self:
        self._rich.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._rich.stop()

    def begin(self, total: int) -> None:
        self._rich.reset(self._task, total=total)

    def tell(self, text: str) -> None:
        self._rich.update(self._task, description=text)

    def step(self) -> None:
        self._rich.advance(self._task)


def progress() -> Silent:
    """A bar on a terminal, lines elsewhere."""
    return Bar() if sys.stderr.isatty() else Lines()
