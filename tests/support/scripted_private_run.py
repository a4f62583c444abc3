"""A short run with noise for parties, as `scripted_run` plays one: without Ray.

Its noise is correlated over rounds, so that the files of earlier noise are written too.
What is drawn by chance is the same each time: the key, and the id to which it is bound.
"""

import types
from contextlib import ExitStack
from unittest import mock

import numpy as np
from support.scripted_run import ScriptedRun

from fedray import fusion
from fedray.aggregator.global_model import GlobalModel
from fedray.aggregator.releases import Releaser, RoundSum
from fedray.aggregator.round_record import RoundRecord
from fedray.aggregator.startup import AggregatorPlan
from fedray.aggregator.validation import UpdateValidator
from fedray.checkpoint import RunFolder, run_inputs
from fedray.config import FederationConfig, parse
from fedray.fusion.private_mean import SUM
from fedray.messages import FUSED, Outcome, PartyLine, RoundReport, Update
from fedray.privacy.grid import n_coordinates
from fedray.privacy.keys import RUN_KEY
from fedray.privacy.ledger import RUN_LEDGER, Ledger
from fedray.privacy.run_ledger import RunLedger, end_secrets
from fedray.weights import cast

PRIVACY = {
    "mechanism": "central",
    "noise_multiplier": 1.0,
    "clip_norm": 0.5,
    "delta": 0.1,
    "sampling": "cyclic",
}
OURS = "fedray.privacy.run_ledger"


class ScriptedPrivateRun(ScriptedRun):
    """Two rounds; resumed after the first."""

    title = "a run with noise for parties: 2 rounds, resumed once"
    stops = (1, 2)
    own_files = ("privacy", "releases", "ledger.json")

    def play(self) -> None:
        """Play what is missing."""
        key = self.folder / RUN_KEY
        if key.exists():
            key.chmod(0o600)  # a disk that was restarted has kept no modes
        with ExitStack() as stack:
            secret = types.SimpleNamespace(urandom=lambda n: b"\7" * n)
            stack.enter_context(mock.patch(f"{OURS}.os", secret))
            # the disk is another after a restart
            stack.enter_context(mock.patch(f"{OURS}._identity", return_value="1:2"))
            ids = types.SimpleNamespace(token_hex=lambda n: "ab" * n)
            stack.enter_context(mock.patch.object(run_inputs, "secrets", ids))
            super().play()

    def _config(self, last: int) -> FederationConfig:
        config, mistakes = parse(
            {
                "architecture": f"{self.user}/tiny.py:tiny",
                "rounds": last,
                "party_fraction": 0.5,
                "loss": "cross_entropy",
                "parties": self.parties,
                "privacy": PRIVACY,
            }
        )
        assert mistakes == []
        return config

    def _rounds(self, plan: AggregatorPlan, weights, writer) -> None:
        config = plan.config
        rule = fusion.from_config(config, plan.blueprint.parameters)
        validator = UpdateValidator(plan.blueprint.schema, "float32", None)
        folder = RunFolder(self.folder, config.keep_checkpoints)
        model = GlobalModel(np.arange(2), rule, validator, folder)
        run = RunLedger(self.folder, plan.run_id)
        model.releaser = Releaser(run, config, None, 2, n_coordinates(weights))
        rule.n_expected = model.releaser.settings.expected
        self.notes += model.restore(weights)[1]
        try:
            for round in range(model.done + 1, config.rounds + 1):
                self._private_round(round, model, config, writer)
        finally:
            model.wait_until_saved()
        if config.rounds == self.stops[-1]:
            end_secrets(self.folder)

    def _private_round(
        self, round: int, model: GlobalModel, config: FederationConfig, writer
    ) -> None:
        release = model.releaser.find(round)
        if release is None:
            record = RoundRecord(round, np.arange(2), config)
            record.settle(np.arange(2), Outcome(FUSED))
            total = np.arange(8) * 1000 * round
            of = RoundSum(round, total, model.weights, 0.5, record)
            release = model.releaser.release(of)
        update = Update({SUM: release.total[SUM]}, 20, 2)
        weights, model.state = model.rule.step(model.weights, update, model.state)
        model.weights = cast(weights, model.validator.schema)
        lines = [PartyLine(name, outcome="fused") for name in "ab"]
        report = RoundReport(
            round, 2, 2, 2, True, 0, 0.5, 0.5, 7, 1.0, 1.0, 0.1, 3, lines,
            privacy=model.releaser.spent,
        )  # fmt: skip
        model.save(report, writer)
        if round > 1:
            self.acknowledged.append(f"rounds until {round - 1}")

    def result(self) -> dict[str, object]:
        """All that must be the same, whatever happened on the way: releases too.

        A key that could not be written is in the ledger, and another one after it.
        """
        releases = Ledger(self.folder / RUN_LEDGER).releases
        assert not (self.folder / RUN_KEY).exists()
        return super().result() | {"releases": releases}
