"""A global model for each group: by a field, or found from what parties learn."""

import json

import numpy as np
import pytest
from support.comparison import assert_close

import fedray
from fedray import policy
from fedray.data import MnistPytorch
from fedray.errors import ConfigError
from fedray.federation import read_config


@pytest.fixture
def regions(settings, digits):
    """Three parties, the first and the last of one region."""
    fields = [{"region": "eu"}, {"region": "us"}, {"region": "eu"}]
    parties = [*settings["parties"], {"name": "c", "data": digits("c", 24, skip=200)}]
    parties = [p | {"fields": f} for p, f in zip(parties, fields, strict=True)]
    return settings | {"parties": parties, "groups": {"by": "region"}}


def part(settings: dict, *places: int) -> dict:
    parties = [settings["parties"][place] for place in places]
    return settings | {"parties": parties, "groups": None}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"groups": {"by": "country"}}, "party 'b' has no field 'country'.*region"),
        ({"groups": {}}, "groups.by is missing"),
        ({"groups": "region"}, "groups must be a mapping"),
        ({"groups": {"by": "region", "k": 2}}, "groups.k has no effect with"),
        ({"groups": {"by": "similarity", "k": 4}}, "k must be from 1 to 3.*got 4"),
        ({"groups": {"by": "similarity", "k": 0}}, "k must be from 1 to 3.*got 0"),
        ({"groups": {"by": "region", "of": 1}}, r"unknown key 'groups\.of'"),
        (
            {"parties": (), "partition": {}, "num_parties": 3},
            "groups by 'region' needs `parties` with fields",
        ),
        (
            {"parties": (), "partition": {}, "num_parties": 3000,
             "groups": {"by": "similarity"}},
            "compare 2 to 2000 parties, each with each other; got 3,000 parties",
        ),
    ],
)  # fmt: skip
def test_config_errors_name_the_party(regions, changes, told):
    with pytest.raises(ConfigError, match=f"(?s){told}"):
        read_config(regions | changes)


def test_a_group_name_that_is_no_file_name_is_an_error(regions):
    regions["parties"][1]["fields"] = {"region": "../us"}
    with pytest.raises(ConfigError, match=r"party 'b': field region '\.\./us' cannot"):
        read_config(regions)


def test_groups_by_a_field_come_as_they_first_appear(regions):
    groups = policy.by_field(read_config(regions))
    assert {k: v.tolist() for k, v in groups.items()} == {"eu": [0, 2], "us": [1]}


def towards(*angles: float) -> np.ndarray:
    """Sketches of length 1 to 8 at these angles, in degrees."""
    turns = np.radians(angles)
    plane = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    return plane * np.arange(1, len(angles) + 1)[:, None]


@pytest.mark.parametrize(
    ("angles", "k", "groups"),
    [
        ([0, 90, 5, 95, 10], None, [[0, 2, 4], [1, 3]]),
        ([0, 5, 10, 3], None, [[0, 1, 2, 3]]),  # no border: all are alike
        ([0, 5, 10, 3], 1, [[0, 1, 2, 3]]),
        ([0, 5, 10, 200], 2, [[0, 1, 2], [3]]),  # k may leave one alone
        ([0, 1, 120, 121, 240, 241], None, [[0, 1], [2, 3], [4, 5]]),
        ([0, 50, 100], 3, [[0], [1], [2]]),
        ([7, 7], None, [[0, 1]]),
        # the cut whose greatest similarity across is least: 20° to 60°, not 0° to 20°
        ([0, 20, 60, 75], 2, [[0, 1], [2, 3]]),
    ],
)
def test_parties_that_learn_alike_are_one_group(angles, k, groups):
    found = policy.group_by_similarity(towards(*angles), k)
    assert [places.tolist() for places in found.values()] == groups
    assert list(found) == [f"group-{i + 1}" for i in range(len(groups))]


def test_a_party_whose_weights_did_not_move_is_similar_to_no_other():
    found = policy.group_by_similarity(
        np.vstack([towards(0, 3, 6), np.zeros((1, 2))]), 2
    )
    assert [places.tolist() for places in found.values()] == [[0, 1, 2], [3]]


@pytest.mark.usefixtures("cluster")
def test_each_group_is_a_federation_of_its_own(regions, tmp_path):
    regions |= {"fusion_algorithm": "fedadam", "rounds": 3}  # a rule that remembers
    result = fedray.run(regions, run_dir=tmp_path / "run", rounds=2)
    result = fedray.run(regions, run_dir=tmp_path / "run", resume=True)
    for group, places in {"eu": (0, 2), "us": (1,)}.items():
        alone = fedray.run(part(regions, *places), run_dir=tmp_path / group)
        assert_close(result.weights(group), alone.weights(), 0)
        own = [line for line in result.history if line.group == group]
        assert [line.round for line in own] == [1, 2, 3]
        assert [line.accuracy for line in own] == [
            each.accuracy for each in alone.history
        ]
        assert own[0].chosen == len(places)
        assert result.models[group] == tmp_path / "run" / f"global_model-{group}.pt"
        assert result.models[group].exists()
    lines = [json.loads(line) for line in (tmp_path / "run/history.jsonl").open()]
    assert [line["round"] for line in lines] == [1, 1, 2, 2, 3, 3]
    assert not (tmp_path / "run" / "global_model.pt").exists()
    page = result.report.read_text()
    assert "<h3>eu</h3>" in page
    assert "3 of 3 rounds done" in page


@pytest.fixture
def permuted(settings, tmp_path):
    """Eight parties of digits; 1, 3, 4 and 6 call every digit otherwise."""
    (x, y), (x_test, y_test) = MnistPytorch("mnist").get_data()
    otherwise = np.roll(np.arange(10), 3)
    parties = []
    for i in range(8):
        names = otherwise if i in (1, 3, 4, 6) else np.arange(10)
        train, test = slice(i * 250, i * 250 + 250), slice(i * 100, i * 100 + 100)
        path = tmp_path / f"party{i}.npz"
        np.savez(path, x_train=x[train], y_train=names[y[train]],
                 x_test=x_test[test], y_test=names[y_test[test]])  # fmt: skip
        parties.append({"name": f"p{i}", "data": str(path)})
    return settings | {"parties": parties, "rounds": 6, "epochs": 2}


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_similarity_separates_parties_with_permuted_labels(permuted, tmp_path):
    permuted |= {"groups": {"by": "similarity"}, "placement_timeout_s": 300}
    result = fedray.run(permuted, run_dir=tmp_path / "run", aggregation="adaptive")
    found = json.loads((tmp_path / "run/groups.json").read_text())
    assert found == {"group-1": [0, 2, 5, 7], "group-2": [1, 3, 4, 6]}
    single = fedray.run(permuted, run_dir=tmp_path / "one", groups=None)
    assert result.accuracy > single.accuracy + 0.2
    assert min(line.accuracy for line in result.history[-2:]) > 0.7
