"""Search quality of doc2vec federations on the Lee corpus."""

import sys
from pathlib import Path

import pytest

import fedray
from fedray.federation import queries

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import doc2vec_lee as lee

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]


def share_found(folder: Path, dm: int) -> float:
    """Run the federation, ask for the other half of every article, by tag."""
    [owners] = lee.owners("additive")
    rounds, epochs = lee.SCHEDULES[dm]
    settings = lee.settings(folder, owners, doc2vec=lee.SPECS[dm], seed=1)
    result = fedray.run(settings, run_dir=folder / "run", rounds=rounds, epochs=epochs)
    halves = [" ".join(words[1::2]) for words in lee.articles()]
    answers, failed = queries(result.folder, halves, lee.WITHIN)
    assert failed == {}
    found = [
        any((one.tag, one.party) == (str(i), f"party-{i // 100}") for one in answer)
        for i, answer in enumerate(answers)
    ]
    assert len(found) == 300
    return sum(found) / 300


def test_distributed_memory_finds_seventy_percent_and_eight_points_above_alone(
    tmp_path,
):
    found = share_found(tmp_path, dm=1)
    alone = max(lee.measure("alone", 1, seed=1))  # whichever vectors are better
    assert found >= 0.70
    assert found >= alone + 0.08


def test_bags_of_words_find_eighty_percent(tmp_path):
    assert share_found(tmp_path, dm=0) >= 0.80
