"""A short run by the real code of its folder, without Ray and without training.

Two processes: the first runs rounds 1 and 2, while a party joins and another leaves;
the second resumes it, with a round in which the parties do not fuse, to round 5.
Whatever has been done already is not done again, so that it can be played on after any
failure, as a user would who repeats a command.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
import yaml

from fedray import data, durable_files, fusion, models
from fedray.aggregator.global_model import GlobalModel
from fedray.aggregator.membership import Membership
from fedray.aggregator.startup import AggregatorPlan
from fedray.aggregator.validation import UpdateValidator
from fedray.checkpoint import (
    RunFolder,
    digest_inputs,
    open_run_folder,
    with_membership_changes,
)
from fedray.config import FederationConfig, parse, read_party
from fedray.errors import FedrayError
from fedray.federation.run import _finish
from fedray.messages import PartyInfo, PartyLine, RoundReport, Update
from fedray.placement import ActorPool, Placement
from fedray.weights import cast

APART = 3  # the round in which the parties do not fuse
MODULE = "fedray.aggregator.membership"
CODE = """
from torch import nn
def tiny():
    return nn.Linear(3, 2)
class Mine:
    def get_data(self): ...
"""


class ScriptedRun:
    """One run in `home`; its code lies in `user`.

    parties : as the config lists them; with those that join and leave, if it is to be
        the run that a config says when all is over.
    acknowledged : what a user has been told is done, in order.
    errors : what a user has been told went wrong.
    """

    title = "a run: 5 rounds, one apart; a party joins, one leaves; resumed once"
    stops = (2, 5)  # rounds after which its processes end

    def __init__(self, home: Path, user: Path, parties: list | None = None):
        self.folder, self.user = home / "runs" / "tiny", user
        self.parties = parties or [{"name": n, "data": f"{n}.npz"} for n in "ab"]
        self.acknowledged: list[str] = []
        self.errors: list[str] = []
        self.notes: list[str] = []
        (user / "tiny.py").write_text(CODE)

    def play(self) -> None:
        """Play what is missing; an error ends a process, and the next is started."""
        with ExitStack() as stack:
            answers = {"add_party": None, "_ask_info": INFO, "ray.kill": None}
            patches = [mock.patch(f"{MODULE}.{name}", return_value=answer)
                       for name, answer in answers.items()]  # fmt: skip
            patches.append(mock.patch.object(Membership, "_place", place))
            # drawing the curves takes a second
            patches.append(mock.patch("fedray.report.render_page", return_value="R"))
            for patch in patches:
                stack.enter_context(patch)
            for last in self.stops:
                self._repeat(lambda last=last: self._run(last))

    def _repeat(self, step) -> None:
        try:
            step()
        except FedrayError as error:
            self.errors.append(str(error))
            step()  # a disk that failed once does not fail again

    def _config(self, last: int) -> FederationConfig:
        config, mistakes = parse(
            {
                "architecture": f"{self.user}/tiny.py:tiny",
                "fusion_algorithm": "fedavgm",
                "rounds": last,
                "loss": "cross_entropy",
                "parties": self.parties,
            }
        )
        assert mistakes == []
        return config

    def _run(self, last: int) -> None:
        config = with_membership_changes(self.folder, self._config(last))
        digests = digest_inputs(config)
        with open_run_folder(self.folder, config, True, digests) as (folder, inputs):
            blueprint, weights = models.named("pytorch").read(config)
            handlers = {name: data.named(name) for name in config.handlers()}
            plan = AggregatorPlan(
                "tiny", config, blueprint, handlers, str(folder.path),
                run_id=inputs.run_id,
            )  # fmt: skip
            with ThreadPoolExecutor(1) as writer:
                self._rounds(plan, weights, writer)
            self.acknowledged.append(f"rounds until {last}")
            _finish(folder, plan)
            self.acknowledged.append("model")

    def _rounds(self, plan: AggregatorPlan, weights, writer) -> None:
        config = plan.config
        rule = fusion.from_config(config, plan.blueprint.parameters)
        validator = UpdateValidator(plan.blueprint.schema, "float32", None)
        folder = RunFolder(self.folder, config.keep_checkpoints)
        everyone = np.arange(config.num_parties)
        model = GlobalModel(everyone, rule, validator, folder)
        self.notes += model.restore(weights)[1]
        membership = Membership(plan, [place(None, config, i) for i in everyone])
        membership.open(model.done, {None: everyone})
        try:
            for round in range(model.done + 1, config.rounds + 1):
                self._round(round, model, membership, writer)
            self._begin(config.rounds + 1, model, membership)
        finally:
            model.wait_until_saved()

    def _begin(self, round: int, model: GlobalModel, membership: Membership) -> None:
        last = [(model.parties, model.last)] if model.last else []
        change = membership.begin(round, last)
        if change.groups is not None:
            model.parties = change.groups[None]

    def _round(
        self, round: int, model: GlobalModel, membership: Membership, writer
    ) -> None:
        self._begin(round, model, membership)
        present = membership.present(model.parties, round)
        joined, left = membership.changes(model.parties)
        if round == 1:
            self._repeat(lambda: self._join(membership))
        if round == 2:
            self._repeat(lambda: self._leave(membership))
        if round != APART:
            move = float(present.sum() + round - model.done)
            trained = {n: a + np.float32(move) for n, a in model.weights.items()}
            update = Update(trained, 10)
            weights, state = model.rule.step(model.weights, update, model.state)
            weights = cast(weights, model.validator.schema)
            model.weights, model.state = weights, state
        names = [membership.plan.config.party_name(i) for i in present.tolist()]
        report = RoundReport(
            round, len(present), len(present), len(present), round != APART, 0, 0.5,
            0.5, 7, 1.0, 1.0, 0.1, 3, [PartyLine(n, outcome="fused") for n in names],
            joined=joined, left=left,
        )  # fmt: skip
        model.save(report, writer)
        if round > 1:
            self.acknowledged.append(f"rounds until {round - 1}")

    def _join(self, membership: Membership) -> None:
        spec = {
            "name": "c",
            "data": "c.npz",
            "data_handler": f"{self.user}/tiny.py:Mine",
        }
        if "c" not in [party.name for party in membership.config.parties]:
            party = read_party(spec)
            assert membership.join(party, data.named(party.data_handler)).round == 2
        self.acknowledged.append("c joined")

    def _leave(self, membership: Membership) -> None:
        membership.leave("b")
        self.acknowledged.append("b left")

    def check_acknowledged(self) -> None:
        """See that nothing is gone of what was acknowledged; nothing is damaged."""
        rounds = [int(a.split()[-1]) for a in self.acknowledged if "rounds" in a]
        found, damage = RunFolder(self.folder).newest_checkpoint()
        assert damage == []
        done = max(rounds, default=0)
        assert (found.round if found else 0) >= (done if done != APART else APART - 1)
        parties = {}
        if {"c joined", "b left"} & set(self.acknowledged):
            config = yaml.safe_load((self.folder / "config.yaml").read_text())
            parties = {party["name"]: party for party in config["parties"]}
        assert "c joined" not in self.acknowledged or parties["c"]["joined"] == 2
        # 2 until round 2 has counted b; it is then as if b had never been in it
        assert "b left" not in self.acknowledged or parties["b"]["left"] in (2, 3)
        if "model" in self.acknowledged:
            models.named("pytorch").read(self._config(2).with_changes(
                model_file=str(self.folder / "global_model.pt")))  # fmt: skip

    def result(self) -> dict[str, object]:
        """All that must be the same, whatever happened on the way."""
        assert not any("damaged" in n or "lost" in n for n in self.notes), self.notes
        checkpoint = RunFolder(self.folder).last_checkpoint()
        durable_files.remove_leftovers(self.folder)  # as the next process does
        left_over = [p.name for p in self.folder.rglob("*.part*")]
        assert left_over == []
        return {
            "weights": {n: a.tobytes() for n, a in checkpoint.weights.items()},
            "state": {k: {n: a.tobytes() for n, a in part.items()}
                      for k, part in checkpoint.state.items()},
            "history": (self.folder / "history.jsonl").read_text(),
            "config": (self.folder / "config.yaml").read_text(),
            "files": sorted(p.name for p in self.folder.iterdir()),
        }  # fmt: skip


INFO = PartyInfo("node", "cpu", np.array([10]), 3)


def place(_, config: FederationConfig, i: int) -> ActorPool:
    """A pool of one party on a node that nobody needs."""
    return ActorPool(
        range(i, i + 1), (config.party_name(i),), Placement("node", {}, 1, 0)
    )
