"""The door: config in, actors placed, progress followed, result out."""

from fedray.federation.door import Result, read_config, run

__all__ = ["Result", "read_config", "run"]
