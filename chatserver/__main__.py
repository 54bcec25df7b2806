"""`python -m chatserver` is the command `chatserver`."""

import sys

from chatserver.cli import main

if __name__ == "__main__":  # a reloading child imports this module under another name
    sys.exit(main())
