"""Data that is not what the run began with: whose it is, said once.

A resumed run and a party that is started again load their data anew. Where it has
changed the run goes on, but its config alone no longer says how to repeat it.
"""

from collections.abc import Iterable

from fedray.config import FederationConfig
from fedray.messages import CHANGED, FIRST

N_NAMED = 20  # parties that one sentence names


class DataChanges:
    """Collects what actors say of their data, until `sentences` is asked for.

    recorded_rounds : rounds done before this start, in which parties kept a digest.
    changed : what else has changed, of the driver's own.
    """

    def __init__(
        self,
        config: FederationConfig,
        recorded_rounds: int = 0,
        changed: Iterable[str] = (),
    ):
        self._config = config
        self._is_recorded = recorded_rounds > 0
        joined = {party.name: party.joined or 1 for party in config.parties}
        self._recorded = {name for name in joined if joined[name] <= recorded_rounds}
        self._noted: set[tuple[str, str]] = set()
        self._parties: set[str] = set()  # those names that are of parties
        self._new: dict[str, list[str]] = {CHANGED: list(changed), FIRST: []}

    def note(self, actor: str, state: str, is_restarted: bool = False) -> None:
        """Note what a party's actor says of the data that it has loaded.

        is_restarted : it had loaded its data before, in another process.
        """
        partition = self._config.partition
        is_recorded = is_restarted or actor in self._recorded
        if partition is not None:  # all actors load the same
            actor = f"the data set {partition.source} that parties are cut from"
            is_recorded = is_restarted or self._is_recorded
        else:
            self._parties.add(actor)
        if state == CHANGED or (state == FIRST and is_recorded):
            self._add(actor, state)

    def note_test_data(self, state: str) -> None:
        """Note what the aggregator says of the `test_data` that it has loaded."""
        if state == CHANGED:
            self._add(f"test_data {self._config.test_data}", state)

    def sentences(self, round: int) -> list[str]:
        """What is new since the last call, for people; it counts from this round on."""
        new, self._new = self._new, {CHANGED: [], FIRST: []}
        return [
            f"{whose} is not what it was when the run began; it is used as it is now, "
            f"from round {round} on"
            for whose in self._phrases(new[CHANGED])
        ] + [
            f"{whose} may be other than when the run began: there is no digest of it "
            "in party_dir on its node to compare with"
            for whose in self._phrases(new[FIRST])
        ]

    def _add(self, name: str, state: str) -> None:
        if (name, state) not in self._noted:
            self._noted.add((name, state))
            self._new[state].append(name)

    def _phrases(self, names: list[str]) -> list[str]:
        """All parties in one phrase, anything else in one of its own."""
        owners = sorted(name for name in names if name in self._parties)
        phrases = [name for name in names if name not in owners]
        if owners:
            noun = "party" if len(owners) == 1 else "parties"
            n_more = len(owners) - N_NAMED
            more = f" and {n_more} more" if n_more > 0 else ""
            listed = ", ".join(owners[:N_NAMED])
            phrases.append(f"the data of {noun} {listed}{more}")
        return phrases
