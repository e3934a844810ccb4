"""`python -m tests.fuzz`: an older name of `python -m tests.rigs.fuzz`."""

import sys

from tests.rigs.fuzz import main

if __name__ == "__main__":
    sys.exit(main())
