"""``python -m fedray`` is ``fedray``."""

import sys

from fedray.cli import main

if __name__ == "__main__":
    sys.exit(main())
