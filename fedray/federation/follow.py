"""Whoever follows a run, and its track, told of every round."""

import contextlib
from collections.abc import Iterator

from fedray.checkpoint import RunFolder
from fedray.config import FederationConfig
from fedray.federation.actors import Watch
from fedray.messages import Progress
from fedray.metrics import tracked


@contextlib.contextmanager
def watched(
    config: FederationConfig, folder: RunFolder, watch: Watch
) -> Iterator[Watch]:
    """What is to be called with a run's progress.

    The track is given whole rounds, as their lines come to stand in the history:
    progress leaves out the lines of parties that did as they should.
    """
    if config.track == "none":
        yield watch
        return
    with tracked(config, folder.path) as log:
        history = folder.follow()

        def catch_up() -> None:
            for report in next(history):
                log(report)

        def follower(progress: Progress) -> None:
            if progress.reports:
                catch_up()
            watch(progress)

        try:
            yield follower
        finally:
            catch_up()
