"""Adaptive federations on the session's cluster: what moves, is lost, and is kept."""

import json
import textwrap

import pytest
from support.cluster_runs import MLP_BYTES, kill_once, outcomes
from support.comparison import assert_close

import fedray
from fedray.checkpoint import RunFolder
from fedray.errors import RoundFailed

pytestmark = pytest.mark.usefixtures("cluster")
SKETCH = 2048  # bytes


@pytest.fixture
def apart(settings):
    """Fuses in rounds 1, 5 and 8, whatever the parties do."""
    return settings | {
        "aggregation": "adaptive",
        "drift_threshold": 1e9,
        "max_rounds_apart": 4,
        "rounds": 8,
    }


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def undisturbed(apart, kept, tmp_path):
    """The same federation with nothing in its way; run once."""
    if not kept:
        kept["run"] = fedray.run(apart, run_dir=tmp_path / "undisturbed")
    return kept["run"]


def assert_rounds(result, n_rounds: int) -> None:
    lines = [json.loads(line) for line in (result.folder / "history.jsonl").open()]
    assert [line["round"] for line in lines] == list(range(1, n_rounds + 1))


def test_rounds_apart_move_sketches_and_nothing_else(undisturbed):
    history = undisturbed.history
    assert_rounds(undisturbed, 8)
    fused = [report.round for report in history if report.aggregated]
    assert fused == [1, 5, 8]
    told = 2 * SKETCH
    for report in history:
        is_fused = report.round in fused
        # two updates and one broadcast to the one node; round 1 sends the start model
        models = 4 if report.round == 1 else 3 if is_fused else 0
        assert report.bytes_moved == told + models * MLP_BYTES
        assert (report.loss is not None) == (report.accuracy is not None) == is_fused
        assert outcomes(report) == ["fused" if is_fused else "apart"] * 2
        assert (report.reported, report.fused) == (2, 2 if is_fused else 0)
        assert 0 < report.estimate < report.threshold == 1e9
    kept = (undisturbed.folder / "checkpoints").iterdir()
    assert sorted(path.name for path in kept) == ["round-00005", "round-00008"]


def test_a_threshold_of_zero_is_fusing_always(apart, tmp_path):
    always = apart | {"aggregation": "always", "rounds": 3}
    del always["drift_threshold"], always["max_rounds_apart"]
    for rule, dtype in [("fedavg", "float32"), ("fedadam", "bfloat16")]:
        words = {"fusion_algorithm": rule, "wire_dtype": dtype}
        plain = fedray.run(always | words, run_dir=tmp_path / f"a-{rule}")
        words |= {"rounds": 3, "drift_threshold": 0.0}
        ours = fedray.run(apart | words, run_dir=tmp_path / f"b-{rule}")
        assert_close(ours.weights(), plain.weights(), 0)
        for line, other in zip(ours.history, plain.history, strict=True):
            assert line.bytes_moved == other.bytes_moved + 2 * SKETCH
            assert line.accuracy == other.accuracy


def test_a_party_killed_between_fusions_comes_back_to_the_same_bits(
    apart, undisturbed, tmp_path
):
    watch = kill_once("party:run:a", lambda p: p.round >= 4)
    result = fedray.run(apart, run_dir=tmp_path / "run", watch=watch)
    assert len(watch.done) == 1
    assert_rounds(result, 8)
    assert all(report.reported == 2 for report in result.history)
    assert_close(result.weights(), undisturbed.weights(), 0)


def test_an_aggregator_killed_between_fusions_reaches_the_same_bits(
    apart, undisturbed, tmp_path
):
    control = {"concurrency_group": "control"}  # answers while it runs a round
    watch = kill_once("aggregator:run", lambda p: p.round >= 4, **control)
    result = fedray.run(apart, run_dir=tmp_path / "run", watch=watch)
    assert len(watch.done) == 1
    assert_rounds(result, 8)
    assert_close(result.weights(), undisturbed.weights(), 0)


FAILING = """
    import time
    from pathlib import Path
    from torch import nn

    class Failing(nn.Module):
        # once, in the 21st batch of a party: b's first one of round 6
        n_batches = 0

        def forward(self, x):
            self.n_batches += self.training
            if self.n_batches == 21 and not Path(MARK).exists():
                Path(MARK).touch()
                TROUBLE
            return x

    def mlp():
        return nn.Sequential(
            Failing(), nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10)
        )
"""


@pytest.fixture
def failing(apart, tmp_path):
    """Write an architecture in which b does this once, in round 6."""

    def write(trouble: str) -> None:
        file, mark = tmp_path / "failing.py", str(tmp_path / "mark")
        text = textwrap.dedent(FAILING).replace("MARK", repr(mark))
        file.write_text(text.replace("TROUBLE", trouble))
        apart["architecture"] = f"{file}:mlp"

    return write


def assert_same(result, undisturbed) -> None:
    ours, theirs = result.weights().values(), undisturbed.weights().values()
    assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))


def test_a_party_late_between_fusions_catches_up_to_the_same_bits(
    apart, undisturbed, failing, tmp_path
):
    failing("time.sleep(3600)")
    apart |= {"quorum": 0.5, "round_timeout_s": 15}
    result = fedray.run(apart, run_dir=tmp_path / "run")
    assert_rounds(result, 8)
    assert [outcomes(line) for line in result.history[5:]] == [
        ["apart", "late"], ["apart", "apart"], ["fused", "fused"],
    ]  # fmt: skip
    assert_same(result, undisturbed)


def test_a_failed_round_apart_is_resumed_from_the_last_fusion(
    apart, undisturbed, failing, tmp_path
):
    failing('raise ValueError("trouble was asked for")')
    with pytest.raises(RoundFailed, match=r"1 reported, 2 needed.*") as caught:
        fedray.run(apart, run_dir=tmp_path / "run")
    assert "5 rounds are kept" in str(caught.value)
    assert RunFolder(tmp_path / "run").last_checkpoint().round == 5
    result = fedray.run(apart, run_dir=tmp_path / "run", resume=True)
    assert_rounds(result, 8)
    assert_same(result, undisturbed)
