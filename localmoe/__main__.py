"""`python -m localmoe` is the `localmoe` command."""

import sys

from localmoe.cli import main

if __name__ == "__main__":
    sys.exit(main())
