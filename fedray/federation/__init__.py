"""The door: config in, actors placed, progress followed, result out."""

from fedray.federation.actors import Watch, connected
from fedray.federation.door import Result, read_config, run

__all__ = ["Result", "Watch", "connected", "read_config", "run"]
