"""``python -m fedray`` is ``fedray``: what it imports is not the current folder's."""

import os
import sys

import fedray

if __name__ == "__main__":
    here = os.path.dirname(os.path.dirname(os.path.abspath(fedray.__file__)))
    if sys.path[0] == os.getcwd() != here:
        del sys.path[0]
    from fedray.cli import main

    sys.exit(main())
