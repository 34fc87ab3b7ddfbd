"""`python -m pymx` is the command `pymx`."""

import sys

from pymx.cli import main

if __name__ == "__main__":
    sys.exit(main())
