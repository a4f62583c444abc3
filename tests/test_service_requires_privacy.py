"""`fedray serve --require-privacy FILE`: privacy that an operator requires."""

import json

import pytest
from starlette.testclient import TestClient
from support.rest import FORM, Client, json_of, model_file

from fedray.config import parse
from fedray.errors import ConfigError
from fedray.service import asgi, auth, store
from fedray.service.privacy_requirement import check_requirements, read_requirements
from fedray.service.schemas import read_settings
from fedray.service.settings import Settings
from fedray.service.store import State

PARTIES = "privacy: {epsilon: 8, delta: 1e-5}\n"
SAMPLES = "dp_sgd: {epsilon: 3, delta: 1e-4}\n"
CENTRAL = {"mechanism": "central", "epsilon": 4.0, "delta": 1e-6, "clip_norm": 1.0}
DP_SGD = {"epsilon": 2.0, "delta": 1e-5, "max_grad_norm": 1.0}


@pytest.fixture
def required(tmp_path):
    def read(text):
        path = tmp_path / "required.yaml"
        path.write_text(text, encoding="utf-8")
        return read_requirements(path)

    return read


def lacks(requirements, **settings):
    """What is said of a federation that is started so; empty if it may start."""
    parties = [{"name": f"p{i}", "data": "/d.npz"} for i in range(10)]
    values = {"model_file": "/", "parties": parties, **settings}
    config, problems = parse(values)
    assert problems == []
    try:
        check_requirements(requirements, config)
    except ConfigError as error:
        return "; ".join(error.problems)
    return ""


def test_without_a_file_nothing_is_required():
    assert Settings().require_privacy is None
    assert lacks(read_requirements(None)) == ""


def test_noise_for_parties_within_the_bounds_is_enough(required):
    one = required(PARTIES)
    assert lacks(one, privacy=CENTRAL) == ""
    assert lacks(one, privacy=CENTRAL | {"epsilon": 8.0, "delta": 1e-5}) == ""


def test_a_federation_without_privacy_is_told_all_that_it_needs(required):
    assert lacks(required(PARTIES + SAMPLES)) == (
        "this service requires privacy: needed privacy.mechanism: central or "
        "distributed, got none, privacy.epsilon of at most 8, got nothing, "
        "privacy.delta of at most 1e-05, got nothing, dp_sgd.epsilon of at most 3, "
        "got nothing, dp_sgd.delta of at most 0.0001, got nothing"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epsilon": 8.1}, "privacy.epsilon of at most 8, got 8.1"),
        ({"delta": 1e-4}, "privacy.delta of at most 1e-05, got 0.0001"),
        (
            {"epsilon": None, "noise_multiplier": 100.0},
            "privacy.epsilon of at most 8, got nothing",
        ),
    ],
)
def test_a_larger_or_missing_limit_is_refused(required, change, said):
    assert said in lacks(required(PARTIES), privacy=CENTRAL | change)


def test_mechanism_and_sampling_may_be_required(required):
    poisson = CENTRAL | {"sampling": "poisson"}
    one = required("privacy: {epsilon: 8, delta: 1e-5, sampling: [all, cyclic]}")
    said = "privacy.sampling: all or cyclic, got poisson"
    assert said in lacks(one, privacy=poisson, party_fraction=0.5)
    assert lacks(one, privacy=CENTRAL) == ""
    one = required("privacy: {epsilon: 8, delta: 1e-5, mechanism: [distributed]}")
    assert "mechanism: distributed, got central" in lacks(one, privacy=CENTRAL)


def test_masked_updates_of_enough_parties_may_be_required(required):
    one = required("{secure_aggregation: true, min_sum: 5}")
    masked = {"secure_aggregation": True, "clip_norm": 1.0}
    assert lacks(one, **masked, min_sum=6) == ""
    assert lacks(one, **masked) == ""  # by default 7 of 10
    assert "min_sum of at least 5, got 4" in lacks(one, **masked, min_sum=4)
    assert "secure_aggregation: true" in lacks(one)


def test_one_of_several_alternatives_is_enough(required):
    one = required(f"- {PARTIES}- {SAMPLES}")
    assert lacks(one, privacy=CENTRAL) == lacks(one, dp_sgd=DP_SGD) == ""
    assert "; or dp_sgd.epsilon" in lacks(one)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must be a mapping"),
        ("[]", "requires nothing"),
        ("{}", "must be a mapping"),
        ("- 3", "must be a mapping"),
        ("secure_aggregation: false", "requires nothing"),
        ("privacy: {epsilon: 8}", "delta"),
        ("privacy: {epsilon: -1, delta: 1e-5}", "above 0"),
        ("privacy: {epsilon: 8, delta: 1e-5, mechanism: [local]}", "got local"),
        ("privacy: {epsilon: 8, delta: 1e-5, sampling: []}", "got nothing"),
        ("privacy: {epsilon: .nan, delta: 1e-5}", "finite"),
        ("dp_sgd: {epsilon: 8, delta: 1e-5, mechanism: [central]}", "mechanism"),
        ("epsilon: 8", "unknown key 'epsilon'"),
        ("min_sum: 1", "at least 2"),
        ("privacy: {", "is not YAML"),
        ("privacy: {epsilon: 8, epsilon: 9, delta: 1e-5}", "epsilon"),
        ("x" * 100_000, "is larger than"),
    ],
)
def test_a_file_that_does_not_say_what_is_required_ends_the_start(required, text, said):
    with pytest.raises(ConfigError, match=said) as caught:
        required(text)
    assert "require_privacy" in str(caught.value)


def test_a_file_that_is_not_there_ends_the_start(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_requirements(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_requirements(tmp_path)


def test_settings_of_masked_updates_are_taken_over_rest():
    settings = FORM | {"secure_aggregation": "true", "clip_norm": "1.0"}
    files = ("model_file",)
    assert read_settings(settings, 10, files)["secure_aggregation"] == "true"
    with pytest.raises(ConfigError, match="secure_aggregation needs 2 parties"):
        read_settings(settings | {"num_parties": 1}, 10, files)


@pytest.mark.usefixtures("cluster")
def test_clients_are_refused_at_start_and_before_training(tmp_path):
    (tmp_path / "required.yaml").write_text(PARTIES)
    id, secret = auth.add_key(tmp_path / "keys", "ann")
    own = {"X-IBM-Client-Id": id, "X-IBM-Client-Secret": secret}
    required = str(tmp_path / "required.yaml")
    settings = Settings(
        str(tmp_path / "root"), str(tmp_path / "keys"), require_privacy=required
    )
    # started before the operator required anything
    party = {"name": "a", "data": "/a.npz", "data_handler": "mnist_pytorch"}
    old = State(store.make_id(), id, {"num_parties": 1}, 1, parties=[party])
    store.create(settings.folder, old, None)
    with TestClient(asgi.build(settings), raise_server_exceptions=False) as http:
        client = Client(http=http, **own)
        refused = client.post(
            "/start-aggregator", data=FORM, files={"model_file": model_file()}
        )
        assert refused.status_code == 422
        assert "needed privacy.mechanism: central or distributed" in refused.text
        assert "required.yaml" not in refused.text
        answer = client.post("/train", json={"aggregator_id": old.id})
        assert answer.status_code == 422
        assert "this service requires privacy" in answer.text
        privacy = json.dumps(CENTRAL | {"delta": 1e-3})
        files = {"model_file": model_file()}
        form = FORM | {"privacy": privacy}
        refused = client.post("/start-aggregator", data=form, files=files)
        assert "privacy.delta of at most 1e-05, got 0.001" in refused.text
        form = FORM | {"privacy": json.dumps(CENTRAL)}
        answer = client.post("/start-aggregator", data=form, files=files)
        assert answer.status_code == 200, answer.text
        client.stop(json_of(answer)["aggregator_id"])
