"""`python -m tokenry`: the command line where the script `tokenry` is not on the path."""

import sys

from tokenry.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
