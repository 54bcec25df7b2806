"""How a long tool is ended: whatever it has started ends with it."""

import signal
import sys
from collections.abc import Callable

__all__ = ["exit_with"]


def exit_with(main: Callable[[], int]) -> None:
    """Run a tool and exit with its status; interrupted, with a shell's status for that."""
    # SIGTERM ends its servers and engines, too; a shell's background job ignores Ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
