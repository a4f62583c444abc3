"""What a run's memory is estimated to be, and what becomes of one that takes more."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from ray.core.generated.common_pb2 import WorkerExitType

from fedray import models
from fedray.config import parse
from fedray.federation.memory_estimate import (
    PROCESS_BYTES,
    ModelBytes,
    party_bytes,
    run_bytes,
)
from fedray.models import Blueprint
from fedray.placement import count_kernel_kills, died_of_memory
from fedray.survey import DataSurvey, ValueCounts
from fedray.weights import Form

MB, GB = 10**6, 10**9
BASE = PROCESS_BYTES["pytorch"]


def test_a_party_holds_the_model_and_four_copies_of_what_trains():
    model = ModelBytes(whole=500 * MB, trained=100 * MB)
    assert party_bytes("pytorch", model, 50 * MB) == BASE + (500 + 400 + 50) * MB


def test_a_run_is_its_parties_its_aggregator_and_who_watches_it():
    model = ModelBytes(whole=10 * MB, trained=10 * MB)
    parties = 2 * BASE + (50 + 1 + 50 + 2) * MB
    rest = BASE + 20 * MB + BASE + 60 * MB
    assert run_bytes("pytorch", model, [1 * MB, 2 * MB]) == parties + rest


def test_the_answer_of_a_large_model_may_need_more_than_its_training():
    model = ModelBytes(whole=1 * GB, trained=0)
    assert run_bytes("pytorch", model, [0]) == BASE + 12 * GB


def test_what_does_not_train_has_no_copies():
    forms = {"a": Form((100, 10), "float32"), "frozen": Form((1000,), "float64")}
    model = ModelBytes.of(Blueprint("pytorch", None, forms, ("a",), frozen=("frozen",)))
    assert model == ModelBytes(whole=4000 + 8000, trained=4000)


def test_the_size_of_a_vocabulary_is_known_before_the_model_is_made():
    settings = {"model_type": "doc2vec", "fusion_algorithm": "doc2vec"}
    config, _ = parse(settings | {"doc2vec": {"vector_size": 1000, "min_count": 2}})
    counts = {f"w{i}": 1 + i % 2 for i in range(10)}
    words = DataSurvey(words=ValueCounts(counts, dict.fromkeys(counts, 1)))
    step = models.named("doc2vec").survey
    assert step is not None
    size = step.size(config, words)
    assert size.n_bytes == 2 * 5 * 1000 * 4
    assert size.of == "vectors of 1,000 numbers for 5 words"
    assert "doc2vec.vector_size" in size.advice


@pytest.mark.parametrize(
    ("exit_type", "detail", "has_killed", "outcome"),
    [
        (WorkerExitType.NODE_OUT_OF_MEMORY, "", False, True),
        (WorkerExitType.SYSTEM_ERROR, "End of file. Some causes: OOM", True, True),
        (WorkerExitType.SYSTEM_ERROR, "End of file. Some causes: OOM", False, False),
        (WorkerExitType.USER_ERROR, "Traceback ...\nMemoryError", False, True),
        (WorkerExitType.INTENDED_SYSTEM_EXIT, "killed by ray.kill", True, False),
    ],
)
def test_deaths_of_memory_are_told_from_others(exit_type, detail, has_killed, outcome):
    process = SimpleNamespace(exit_type=exit_type, exit_detail=detail)
    assert died_of_memory(process, has_killed) is outcome


def test_the_kernels_kills_can_be_counted_here():
    assert count_kernel_kills() >= 0


def test_a_process_that_takes_more_than_its_limit_gets_an_error():
    program = """
        import numpy as np
        from fedray import limits
        limits.limit_growth(200 << 20)
        np.ones(100 << 20, np.uint8)
        try:
            np.ones(300 << 20, np.uint8)
        except MemoryError:
            print("refused")
    """
    lines = "\n".join(line.strip() for line in program.splitlines())
    lines = lines.replace("np.ones(300", "  np.ones(300").replace("print", "  print")
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert done.stdout == "refused\n", done.stderr
