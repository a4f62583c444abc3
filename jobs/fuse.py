"""Run a federation as a Ray job.

ray job submit --working-dir . -- python jobs/fuse.py jobs/mnist_fedavg.yaml rounds=3
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # fedray from the working dir

from fedray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
