"""What a run's memory is estimated to be, and what becomes of one that takes more."""

import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
from ray.core.generated.common_pb2 import WorkerExitType
from support.memory_group import small_cgroup

import fedray
from fedray import models
from fedray.config import parse
from fedray.errors import OutOfMemory
from fedray.federation.memory_estimate import (
    PROCESS_BYTES,
    ModelBytes,
    party_bytes,
    run_bytes,
)
from fedray.models import Blueprint
from fedray.placement import count_kernel_kills, died_of_memory
from fedray.service import json_text
from fedray.survey import DataSurvey, ValueCounts
from fedray.weights import Form

MB = 10**6
BASE = PROCESS_BYTES["pytorch"]


def test_a_party_holds_the_model_and_four_copies_of_what_trains():
    model = ModelBytes(whole=500 * MB, trained=100 * MB)
    assert party_bytes("pytorch", model, 50 * MB) == BASE + (500 + 400 + 50) * MB


def test_a_run_is_its_parties_its_aggregator_and_who_watches_it():
    model = ModelBytes(whole=10 * MB, trained=10 * MB)
    parties = 2 * BASE + (50 + 1 + 50 + 2) * MB
    rest = BASE + 20 * MB + BASE + 60 * MB
    assert run_bytes("pytorch", model, [1 * MB, 2 * MB]) == parties + rest


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


HUNGRY = """
    import time
    from pathlib import Path

    import numpy as np

    from fedray.data import MnistPytorch

    class Hungry(MnistPytorch):
        def get_data(self):
            (Path({group!r}) / "cgroup.procs").write_text("0")  # this process
            taken = []
            while True:
                taken.append(np.ones(16 << 20, np.uint8))
"""


@pytest.fixture
def group():
    with small_cgroup(400 << 20) as folder:
        yield folder


def test_a_party_that_the_kernel_kills_twice_ends_the_run(
    cluster, settings, tmp_path, group
):
    file = tmp_path / "hungry.py"
    file.write_text(textwrap.dedent(HUNGRY.format(group=str(group))))
    parties = [dict(party) for party in settings["parties"]]
    parties[1]["data_handler"] = f"{file}:Hungry"
    settings |= {"parties": parties, "rounds": 100_000, "quorum": 0.5}
    with pytest.raises(OutOfMemory, match=f"party {parties[1]['name']} was killed"):
        fedray.run(settings, run_dir=tmp_path / "run")


def test_a_party_that_takes_more_than_max_memory_is_told_so(
    cluster, settings, tmp_path
):
    file = tmp_path / "hungry.py"
    code = HUNGRY.replace('"cgroup.procs"', '"procs"').format(group=str(tmp_path))
    file.write_text(textwrap.dedent(code))
    parties = [dict(party) for party in settings["parties"]]
    parties[1]["data_handler"] = f"{file}:Hungry"
    settings |= {"parties": parties, "max_memory": 300 << 20}
    with pytest.raises(fedray.FedrayError, match="MemoryError"):
        fedray.run(settings, run_dir=tmp_path / "run")


@pytest.mark.parametrize("n_bytes", [1, 100, 1 << 20])
def test_an_answer_in_parts_is_the_same_json(monkeypatch, n_bytes):
    monkeypatch.setattr(json_text, "PART_BYTES", n_bytes)
    numbers = np.random.default_rng(0)
    strided = numbers.random((40, 3, 2))[:, ::2]
    arrays = [numbers.random((7, 5), np.float32), np.array(2.5), np.zeros((0, 3))]
    arrays += [np.zeros((3, 0)), strided, np.array([np.nan, np.inf]), np.arange(100)]
    words = {"words": ["a", "b"], "vectors": [[1.5, 2.0], [3.0, 4.0]], "none": []}
    for value in ({"global_model": arrays, "info": words}, words, [], {}, 1.5, "x"):
        plain = orjson.dumps(value, lambda a: a.tolist(), orjson.OPT_SERIALIZE_NUMPY)
        assert b"".join(json_text.json_parts(value)) == plain


def test_a_vocabulary_that_is_too_large_ends_the_run_before_a_model_is_made(
    cluster, texts, tmp_path
):
    settings = texts(tmp_path)
    settings["doc2vec"] = {**settings.get("doc2vec", {}), "vector_size": 10_000}
    with pytest.raises(OutOfMemory) as error:
        fedray.run(settings, run_dir=tmp_path / "run", max_memory=500 << 20)
    assert "vectors of 10,000 numbers for" in str(error.value)
    assert "at 2 parties, and may take 524 MB" in str(error.value)
    assert "lower doc2vec.vector_size" in str(error.value)
