"""doc2vec fusion rules by hand arithmetic; vocabulary; config rules of documents."""

import numpy as np
import pytest

from fedray import fusion
from fedray.config import Doc2VecSpec, parse
from fedray.errors import TooFewUpdates
from fedray.messages import Update
from fedray.survey import ValueCounts

ZERO = {"wv": np.zeros((4, 2), np.float32)}
# rows: only party 0 moved; both alike; at right angles; nobody moved
FIRST = {"wv": np.array([[3, 4], [1, 0], [2, 0], [0, 0]], np.float32)}
SECOND = {"wv": np.array([[0, 0], [1, 0], [0, 2], [0, 0]], np.float32)}


def fused(rule, base, *weights, staged=False):
    parts = [rule.to_additive(Update(w, 1), base, {}) for w in weights]
    if staged:
        parts = [fusion.combine(rule, parts[:2]), fusion.combine(rule, parts[2:])]
    return rule.step(base, fusion.combine(rule, parts), {})[0]


@pytest.mark.parametrize(
    ("cap", "alike"), [("none", 2.0), ("fourth", 2**0.75), ("root", 2**0.5)]
)
def test_changes_of_different_words_add_up_and_common_changes_are_capped(cap, alike):
    rule = fusion.named("doc2vec", cap=cap)
    rows = fused(rule, ZERO, FIRST, SECOND)["wv"]
    # alike: the sum is 2 long, the root of the squares √2; at right angles both are √8
    assert rows == pytest.approx(np.array([[3, 4], [alike, 0], [2, 2], [0, 0]]))
    assert rows.dtype == np.float32


def test_changes_are_added_to_the_global_rows():
    rule = fusion.named("doc2vec", cap="none")
    base = {"wv": np.full((4, 2), 10, np.float32)}
    ours, theirs = ({"wv": base["wv"] + w["wv"]} for w in (FIRST, SECOND))
    rows = fused(rule, base, ours, theirs)["wv"]
    assert rows.tolist() == [[13, 14], [12, 10], [12, 12], [10, 10]]


def test_row_momentum_repeats_a_share_of_the_last_step():
    rule = fusion.named("doc2vec", cap="none", momentum=0.5)
    weights, state = {"wv": np.zeros((1, 2), np.float32)}, {}
    state = rule.init(weights)
    seen = []
    for step in (4, 0, 2):
        moved = {"wv": weights["wv"] + np.array([[step, 0]], np.float32)}
        parts = fusion.combine(
            rule, [rule.to_additive(Update(moved, 1), weights, state)]
        )
        weights, state = rule.step(weights, parts, state)
        seen.append(weights["wv"][0].tolist())
    # v: 4, then ½·4 = 2, then ½·2 + 2 = 3
    assert seen == [[4, 0], [6, 0], [9, 0]]
    assert state["momentum"]["wv"].tolist() == [[3, 0]]


@pytest.mark.parametrize("share", ["additive", "mean", "output_only"])
def test_combining_in_stages_is_combining_at_once(share):
    rng = np.random.default_rng(0)
    base = {"syn1neg": rng.normal(size=(5, 3)).astype(np.float32)}
    weights = [
        {"syn1neg": rng.normal(size=(5, 3)).astype(np.float32)} for _ in range(4)
    ]
    if share == "mean":
        base["seen"] = np.zeros(5, np.float32)
        weights = [w | {"seen": np.arange(5, dtype=np.float32)} for w in weights]
    rule = fusion.named("doc2vec", share=share)
    whole = fused(rule, base, *weights)
    staged = fused(rule, base, *weights, staged=True)
    for name in base:
        assert staged[name] == pytest.approx(whole[name], rel=1e-5)


def test_a_mean_weighs_each_row_by_how_often_the_party_used_its_word():
    seen = np.array([1, 3, 0, 0], np.float32)
    other = np.array([1, 1, 2, 0], np.float32)
    rule = fusion.named("doc2vec", share="mean")
    base = ZERO | {"seen": np.zeros(4, np.float32)}
    rows = fused(rule, base, FIRST | {"seen": seen}, SECOND | {"seen": other})
    # (3,4)·1/2; both 1; (0,2)·2/2, as the first never used it; nobody used the last
    assert rows["wv"].tolist() == [[1.5, 2], [1, 0], [0, 2], [0, 0]]
    assert rows["seen"].tolist() == [0, 0, 0, 0]


def test_output_only_is_the_plain_mean():
    rule = fusion.named("doc2vec", share="output_only")
    rows = fused(rule, {"syn1neg": ZERO["wv"]}, *({"syn1neg": w["wv"]} for w in
                 (FIRST, SECOND)))  # fmt: skip
    assert rows["syn1neg"].tolist() == [[1.5, 2], [1, 0], [1, 1], [0, 0]]


def test_arguments_are_never_written_to():
    rule = fusion.named("doc2vec")
    frozen = [{"wv": w["wv"].copy()} for w in (ZERO, FIRST, SECOND)]
    for weights in frozen:
        weights["wv"].flags.writeable = False
    fused(rule, *frozen)
    parts = [rule.to_additive(Update(w, 1), frozen[0], {}) for w in frozen[1:]]
    for part in parts:
        for array in part.weights.values():
            array.flags.writeable = False
    assert fusion.combine(rule, parts).n_parties == 2


def test_rows_near_the_largest_float_do_not_overflow_the_cap():
    rule = fusion.named("doc2vec", cap="root")
    huge = {"wv": np.array([[1e30, 0]], np.float32)}
    rows = fused(rule, {"wv": np.zeros((1, 2), np.float32)}, huge, huge)["wv"]
    assert rows == pytest.approx(np.array([[2**0.5 * 1e30, 0]]), rel=1e-6)


def test_no_update_at_all_is_too_few():
    with pytest.raises(TooFewUpdates):
        fusion.combine(fusion.named("doc2vec"), ())


def test_words_are_ordered_by_count_then_by_letters_and_rare_ones_left_out():
    from fedray.models.doc2vec.build import select_words

    once = {"bee": 1, "ant": 1, "cow": 1}
    here = ValueCounts({"bee": 2, "ant": 2, "cow": 1}, once)
    there = ValueCounts({"cow": 1, "dog": 5, "bee": 1}, {"cow": 2, "dog": 1, "bee": 1})
    total = ValueCounts.merge([here, there])
    assert total.counts == {"bee": 3, "ant": 2, "cow": 2, "dog": 5}
    assert total.parties == {"bee": 2, "ant": 1, "cow": 3, "dog": 1}
    assert select_words(total, Doc2VecSpec(min_count=2)) == ["dog", "bee", "ant", "cow"]
    assert select_words(total, Doc2VecSpec(min_count=3)) == ["dog", "bee"]
    assert select_words(total, Doc2VecSpec(min_parties=2)) == ["bee", "cow"]


TEXT = {
    "model_type": "doc2vec",
    "fusion_algorithm": "doc2vec",
    "data_handler": "20_newsgroup",
    "parties": [{"name": "a", "data": "/a"}],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fusion_algorithm": "fedavg"}, "go together, got doc2vec and fedavg"),
        ({"model_type": "pytorch"}, "go together, got pytorch and doc2vec"),
        ({"doc2vec": {"vectorsize": 5}}, "did you mean 'doc2vec.vector_size'?"),
        ({"doc2vec": {"dm": 2, "window": 0}}, "doc2vec.window must be between 1"),
        ({"share": "addtive"}, "did you mean 'additive'?"),
        ({"cap": "roots"}, "did you mean 'root'?"),
        (
            {"share": "mean", "row_momentum": 0.1},
            "with share: mean: it is for share: additive",
        ),
        ({"row_momentum": 1}, "row_momentum must be between 0 and 0.99"),
        ({"party_dir": "here"}, "party_dir must start with / or ~, got 'here'"),
        ({"wire_dtype": "float16"}, "wire_dtype has no effect"),
        (
            {"proximal_mu": 0.1, "optimizer_args": {"lr": 1}},
            "proximal_mu has no effect",
        ),
        ({"architecture": "a.py:b"}, "architecture has no effect"),
        ({"aggregation": "adaptive"}, "doc2vec takes none"),
        ({"groups": {"by": "similarity"}}, "groups has no effect"),
        ({"data_handler": "mnist_pytorch"}, "mnist_pytorch is not for doc2vec"),
        ({"model_file": "/nowhere.npz"}, "model file /nowhere.npz: there is no such"),
    ],
)
def test_settings_that_doc2vec_cannot_use_are_errors_at_load(change, message):
    from fedray.errors import ConfigError
    from fedray.federation import read_config

    with pytest.raises(ConfigError) as caught:
        read_config(TEXT | change)
    assert message in str(caught.value)


def test_doc2vec_settings_with_another_model_type_are_errors():
    plain = {"model_file": "a.pt", "parties": [{"name": "a", "data": "/a"}]}
    for key, value in {"share": "mean", "cap": "root", "doc2vec": {"dm": 0}}.items():
        (message,) = parse(plain | {key: value})[1]
        assert message.startswith(f"{key} has no effect with model_type: pytorch: ")
    assert parse(plain | {"data_handler": "20_newsgroup"})[1] == []


def test_a_text_handler_with_a_network_is_an_error():
    from fedray import data

    assert data.problems("wikipedia", "pytorch") == [
        "data_handler wikipedia is not for pytorch; take one of ['cifar10_keras', "
        "'csv', 'image_folder', 'mnist_keras', 'mnist_pytorch', 'npz', 'parquet', "
        "'text_lines'] or your own file.py:ClassName"
    ]


def test_a_written_config_reads_back_the_same(tmp_path):
    import yaml

    given = TEXT | {"doc2vec": {"dm": 0, "vector_size": 7}, "cap": "none"}
    config, found = parse(given)
    assert found == []
    again = parse(yaml.safe_load(yaml.safe_dump(config.to_dict())))[0]
    assert again == config


def test_the_example_job_is_a_valid_config():
    from pathlib import Path

    from fedray.federation import read_config

    file = Path(__file__).parents[1] / "jobs" / "news_doc2vec.yaml"
    config = read_config(file)
    assert (config.name, config.doc2vec.min_parties) == ("news_doc2vec", 1)
