"""``fedray ui``: the page of all runs of this machine, served to this machine alone.

It reads run folders. It connects to no cluster; only with ``--allow-stop`` it starts
``fedray stop`` for a run that the user stops.
"""

from fedray.ui.server import serve

__all__ = ["serve"]
