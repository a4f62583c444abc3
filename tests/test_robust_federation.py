"""Robust rules in whole federations, and offline: the same rule everywhere."""

import numpy as np
import pytest
import torch
from support.comparison import assert_close
from support.local_rounds import fedray_rounds

import fedray
from fedray.cli import main

cluster = pytest.mark.usefixtures("cluster")
RULES = {
    "median": {},
    "multi_krum": {"n_hostile": 0, "n_selected": 2},
    "centred_clipping": {"clip_norm": 0.3, "bucketing": 2},
}


@pytest.fixture
def four(settings, digits):
    settings["parties"] = [
        {"name": name, "data": digits(name, 32, skip=32 * i)}
        for i, name in enumerate("abcd")
    ]
    return settings


@cluster
@pytest.mark.parametrize("rule", RULES)
def test_robust_rules_run_to_the_bits_of_plain_calls(four, tmp_path, rule):
    four |= {"fusion_algorithm": rule, **RULES[rule]}
    if rule == "centred_clipping":  # what it must remember comes from the checkpoint
        fedray.run(four, run_dir=tmp_path / "run", rounds=1)
    result = fedray.run(four, run_dir=tmp_path / "run", rounds=2, resume=True)
    assert [report.fused for report in result.history] == [4, 4]
    assert_close(result.weights(), fedray_rounds(four | {"rounds": 2}), 0)


@cluster
def test_half_the_bits_and_a_pull_to_the_global_weights_go_with_robust_rules(
    four, tmp_path
):
    four |= {"fusion_algorithm": "geometric_median", "proximal_mu": 0.1, "rounds": 1}
    narrow = fedray.run(four, run_dir=tmp_path / "run", wire_dtype="bfloat16")
    assert_close(narrow.weights(), fedray_rounds(four), 5e-3)


@cluster
@pytest.mark.parametrize("rule", ["krum", "norm_clipping"])
def test_parties_of_one_actor_are_fused_as_if_each_had_its_own(
    settings, tmp_path, rule
):
    del settings["parties"]
    settings |= {"fusion_algorithm": rule, "rounds": 1, "num_parties": 5}
    settings |= {"clip_norm": 0.3} if rule == "norm_clipping" else {"n_hostile": 1}
    settings["partition"] = {"samples_per_party": 20}
    together = fedray.run(settings, run_dir=tmp_path / "a", parties_per_actor=5)
    alone = fedray.run(settings, run_dir=tmp_path / "b", parties_per_actor=1)
    assert_close(together.weights(), alone.weights(), 1e-6)


def saved(path, value: float) -> str:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    for tensor in module.parameters():
        torch.nn.init.constant_(tensor, value)
    torch.save(module, path)
    return str(path)


def test_files_fuse_by_robust_rules(tmp_path, capsys):
    files = [saved(tmp_path / f"{i}.pt", v) for i, v in enumerate((1, 2, 3, 4, 1e9))]
    out = str(tmp_path / "out.pt")
    for words, value in {
        ("median",): 3,
        ("trimmed_mean", "--n-hostile", "1"): 3,
        ("krum", "--n-hostile", "1"): 2,
    }.items():
        assert main(["fuse", *files, "--out", out, "--algorithm", *words]) == 0
        assert (torch.load(out, weights_only=False)[0].weight == value).all()
    for words, told in {
        ("bulyan", "--n-hostile", "1"): "bulyan needs 7 updates, got 5",
        ("median", "--n-hostile", "1"): "--n-hostile does not apply to median",
        ("fedavg", "--n-hostile", "1"): "--n-hostile does not apply to fedavg",
        ("krum", "--n-hostile", "-1"): "must be 0 or more, got -1",
        ("krum", "--samples", "1,1,1,1,1"): "--samples does not apply to krum",
        ("norm_clipping",): "norm_clipping needs rounds",
    }.items():
        assert main(["fuse", *files, "--out", out, "--algorithm", *words]) == 1
        assert told in capsys.readouterr().err


@cluster
def test_batchnorm_runs_under_a_robust_rule_and_counts_stay_whole(four, tmp_path):
    file = tmp_path / "bn.py"
    file.write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784),"
        " nn.Linear(784, 10))\n"
    )
    four |= {"architecture": f"{file}:net", "batch_size": 8, "rounds": 1}
    four["fusion_algorithm"] = "median"
    weights = fedray.run(four, run_dir=tmp_path / "run").weights()
    assert weights["1.num_batches_tracked"] == 4  # 32 samples in batches of 8
    assert weights["1.num_batches_tracked"].dtype == np.int64
