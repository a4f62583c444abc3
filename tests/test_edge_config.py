"""What a config may say of edges, and what does not go with them: with the reason."""

import numpy as np
import pytest

from fedray import policy
from fedray.config import FederationConfig, parse
from fedray.config.edges import POPULATION
from fedray.edges.contacts import Contacts
from fedray.edges.listing import list_edges
from fedray.edges.protocol import Enrol
from fedray.edges.registry import Registry
from fedray.edges.roster import Roster
from fedray.errors import ConfigError
from fedray.experiments.grid import Grid
from fedray.federation.check import CheckResult
from fedray.federation.edge_door import edge_notes
from fedray.federation.survey import survey_request
from fedray.messages import RoundReport
from fedray.metrics import TABLE
from fedray.placement import Node, place_federation, place_new_party
from fedray.report import write_report
from fedray.runs_page.run_details import RunDetails
from fedray.sweep.plan import read_plan

EDGE = {"name": "a", "edge": True}
BASE = {"model_file": "/m.pt", "parties": [EDGE, {"name": "b", "data": "/b.npz"}]}
POPULATED = {"model_file": "/m.pt", "edges": {"min": 2}}
DP = {"mechanism": "central", "epsilon": 8, "delta": 1e-4, "clip_norm": 1.0}

UNFIT = {
    "best_model": ({"fusion_algorithm": "best_model"}, "scored there"),
    "ensemble": ({"fusion_algorithm": "ensemble"}, "code of its own"),
    "scaffold": ({"fusion_algorithm": "scaffold"}, "control variates"),
    "doc2vec": (
        {"fusion_algorithm": "doc2vec", "model_type": "doc2vec", "model_file": None},
        "words of all parties",
    ),
    "sklearn": ({"model_type": "sklearn", "architecture": "SGDClassifier",
                 "model_file": None}, "count their samples"),
    "similarity": ({"groups": {"by": "similarity"}}, "take a field"),
    "normalize": ({"normalize": "federated"}, "take constants"),
    "attack": ({"attack": {"kind": "ipm", "parties": ["a"]}}, "within the cluster"),
    "personal": ({"personal": ["*bias"]}, "not kept there"),
    "ditto": ({"ditto_lambda": 0.1}, "not kept there"),
    "finetune": ({"finetune_epochs": 1}, "not kept there"),
    "compare": ({"compare": "local"}, "does not train alone"),
    "loss": ({"loss": "mine.py:loss"}, "code never travels"),
    "metrics": ({"metrics": ["mine.py:f"]}, "code never travels"),
    "secure": ({"secure_aggregation": True, "clip_norm": 1.0}, "single updates"),
    "central": ({"privacy": DP}, "single updates"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNFIT)
def test_what_does_not_go_with_edges_is_said_with_the_reason(kind):
    changes, why = UNFIT[kind]
    for base in (BASE, POPULATED):
        _, mistakes = parse(base | changes)
        assert any(why in one for one in mistakes), mistakes


def test_a_plain_config_with_edges_has_no_mistakes_and_is_read_again():
    for settings in (BASE, POPULATED, BASE | POPULATED):
        config, mistakes = parse(settings)
        assert mistakes == []
        again, mistakes = parse(config.to_dict())
        assert mistakes == []
        assert again == config
        assert config.has_edges
    assert not parse({"model_file": "/m", "parties": [BASE["parties"][1]]})[0].has_edges


PARTIES = {
    "data": ({"data": "/x"}, "data has no effect at an edge"),
    "labels": ({"labels": {"a": "b"}}, "labels has no effect at an edge"),
    "data_root": ({"data_root": "/x"}, "data_root has no effect at an edge"),
    "data_handler": ({"data_handler": "npz"}, "data_handler has no effect at an edge"),
    "no edge": ({"edge": False}, "parties[0].data is missing"),
    "no truth": ({"edge": "maybe"}, "edge must be true or false"),
}


@pytest.mark.parametrize("kind", PARTIES)
def test_what_its_owner_says_of_an_edge_does_not_stand_in_the_config(kind):
    changes, why = PARTIES[kind]
    _, mistakes = parse(BASE | {"parties": [EDGE | changes]})
    assert any(why in one for one in mistakes), mistakes


SPECS = {
    "more than max": ({"min": 5, "max": 4}, "edges.min is 5, more than edges.max: 4"),
    "none": ({"min": 0}, "edges.min must be between 1"),
    "too many": ({"max": 10**8}, "edges.max must be between 1"),
    "a small spool": ({"spool_bytes": 1}, "edges.spool_bytes must be at least"),
    "unknown": ({"minimum": 1}, "unknown key 'edges.minimum'"),
    "text": ({"per_round": "all"}, "edges.per_round must be a whole number"),
}


@pytest.mark.parametrize("kind", SPECS)
def test_mistakes_in_the_numbers_of_edges_are_named(kind):
    spec, why = SPECS[kind]
    _, mistakes = parse(POPULATED | {"edges": spec})
    assert any(why in one for one in mistakes), mistakes


def test_a_population_goes_neither_with_a_partition_nor_with_adaptive_fusion():
    for changes, why in (
        ({"partition": {"source": "mnist"}, "num_parties": 2}, "give either"),
        ({"aggregation": "adaptive"}, "adaptive does not go with edges"),
        ({"aggregation": "buffered"}, "buffered does not go with edges"),
        ({"late": "next_round"}, "next_round does not go with edges"),
        ({"groups": {"by": "site"}}, "have no fields"),
        ({"num_parties": 5}, "num_parties: 5 has no effect with edges"),
        ({"parties": [{"name": "edge-5", "data": "/x"}]}, "choose another"),
        ({"edges": True}, "edges must be a mapping"),
        ({"edges": []}, "edges must be a mapping"),
        ({"edges": {"max_samples": 0}}, "edges.max_samples must be"),
        ({"edges": {"per_group": -1}}, "edges.per_group must be"),
    ):
        _, mistakes = parse(POPULATED | changes)
        assert any(why in one for one in mistakes), mistakes
    for aggregation in ("adaptive", "buffered"):
        _, mistakes = parse(BASE | {"aggregation": aggregation})
        assert mistakes == []  # each that is listed sends its own update


def test_edges_are_placed_on_the_drivers_node_and_reserve_nothing():
    nodes = [Node("n1", {}, 4, 0), Node("n2", {"site": "x"}, 8, 1)]
    config, _ = parse(BASE | POPULATED | {"edges": {"per_round": 9, "per_group": 4}})
    edge, party, population = place_federation(config, nodes)
    assert (edge.kind, party.kind, population.kind) == ("edge", "", "edges")
    assert (edge.placement.n_cpus, edge.placement.n_gpus) == (0, 0)
    assert party.placement.n_cpus == 1  # as if it were alone
    assert population.actors == ("edges/1", "edges/2", "edges/3")
    assert population.parties.start == POPULATION
    assert place_new_party(config, 0, nodes, []).kind == "edge"


def test_names_and_places_of_a_population_are_those_of_its_numbers():
    config = FederationConfig(model_file="/m.pt", edges={"min": 1})
    assert config.party_name(POPULATION + 7) == "edge-7"


def test_choosing_fairly_takes_those_that_were_chosen_least():
    places = np.arange(10, 16)
    counts = np.array([2, 1, 1, 0, 5, 0])
    chosen = policy.choose_fairly(places, counts, 3, seed=1, draw=1)
    assert {13, 15} < set(chosen.tolist()) <= {11, 12, 13, 15}
    assert (chosen == policy.choose_fairly(places, counts, 3, seed=1, draw=1)).all()
    draws = {tuple(policy.choose_fairly(places, 0 * counts, 3, 1, d)) for d in range(9)}
    assert len(draws) > 1
    assert (policy.choose_fairly(places, counts, 9, 1, 1) == places).all()


def test_check_tells_how_many_have_enrolled(tmp_path):
    config, _ = parse(BASE | POPULATED)
    notes = edge_notes(config, tmp_path / "run")
    assert notes[0].startswith("edges enrolled: 0 of 1; not a: fedray edges invite run")
    assert "round 1 waits for 2 (edges.min)" in notes[1]
    assert CheckResult(notes=notes).to_json()["ok"]


def test_data_that_all_parties_would_be_asked_of_does_not_go_with_edges():
    config, _ = parse(BASE | {"data_handler": "csv"})
    with pytest.raises(ConfigError, match="does not go with edges"):
        survey_request(config, {"csv": "csv"})


def test_metrics_tell_of_edges():
    values = dict.fromkeys(("chosen", "reported", "fused", "refused", "bytes_moved"), 0)
    report = RoundReport(
        round=1, aggregated=True, loss=None, accuracy=None, seconds=1.0,
        train_seconds=0.0, evaluate_seconds=0.0, evaluated=0, **values,
        edges={"enrolled": 5, "present": 3, "training": 1, "bytes_up": 7,
               "bytes_down": 9},
    )  # fmt: skip
    got = {m.name: list(m.values(report)) for m in TABLE if m.name.startswith("edge")}
    assert got["edges"] == [
        ({"state": "enrolled"}, 5), ({"state": "present"}, 3),
        ({"state": "training"}, 1),
    ]  # fmt: skip
    assert got["edge_bytes"] == [({"direction": "up"}, 7), ({"direction": "down"}, 9)]


def test_the_view_of_a_run_and_its_report_list_the_edges(tmp_path):
    details = RunDetails(tmp_path)
    assert "edges" not in details.plain()
    registry = Registry(tmp_path)
    invitation = registry.invite(name="hospital-a")[0]
    registry.enrol(
        Enrol(
            invitation=invitation, public_key="1" * 64, token_hash="2" * 64,
            version="0.1.0",
        )
    )  # fmt: skip
    row = Contacts(tmp_path / "edges").row(0)
    row["last_seen"], row["version"], row["bytes_up"] = 1e9, b"0.1.0", 2_000
    plain = details.plain()
    (edge,) = plain["edges"]
    assert (edge["name"], edge["state"]) == ("hospital-a", "enrolled")
    assert edge["chosen"] == 0
    assert plain["edge_counts"]["enrolled"] == 1
    report = RoundReport.from_json(
        {
            "round": 1, "chosen": 1, "reported": 1, "fused": 1, "aggregated": True,
            "refused": 0, "loss": None, "accuracy": None, "bytes_moved": 0,
            "seconds": 1.0, "train_seconds": 0.0, "evaluate_seconds": 0.0,
            "evaluated": 0, "parties": [{"name": "hospital-a", "outcome": "fused"}],
            "edges": {"enrolled": 1, "present": 1, "training": 0},
        }
    )  # fmt: skip
    page = write_report(tmp_path, {}, [report], edges=list_edges(Roster(tmp_path)))
    text = page.read_text("utf-8")
    assert "1 enrolled, 1 present, 0 training" in text
    assert "hospital-a</th><td>enrolled</td>" in text
    assert "0.1.0" in text


def test_a_sweep_does_not_go_with_edges(tmp_path):
    (tmp_path / "model.pt").touch()
    settings = BASE | {"model_file": str(tmp_path / "model.pt")}
    with pytest.raises(ConfigError, match="a sweep does not go with edges"):
        read_plan(settings | {"sweep": {"seed": [1, 2]}}, Grid())
