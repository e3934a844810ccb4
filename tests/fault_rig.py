"""`python -m tests.fault_rig`: an older name of `python -m tests.rigs.fault_rig`."""

import sys

from tests.rigs.fault_rig import main

if __name__ == "__main__":
    sys.exit(main())
