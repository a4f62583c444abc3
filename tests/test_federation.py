"""Whole federations on the session's cluster, through the public door."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import yaml
from support.cluster_runs import MLP_BYTES
from support.comparison import assert_close
from support.local_rounds import fedray_rounds

import fedray
from fedray.checkpoint import RunFolder
from fedray.errors import (
    ConfigError,
    JoinFailed,
    ModelFileError,
    PlacementError,
    RoundFailed,
    RunFolderError,
)
from fedray.placement import ActorPool, Placement, wait_until_ready

pytestmark = pytest.mark.usefixtures("cluster")
KEYS = {
    "round", "chosen", "reported", "fused", "aggregated", "refused", "loss", "accuracy",
    "bytes_moved", "seconds", "train_seconds", "evaluate_seconds", "parties",
}  # fmt: skip


def test_actors_give_the_same_weights_as_plain_calls(settings, tmp_path):
    result = fedray.run(settings, run_dir=tmp_path / "run")
    assert_close(result.weights(), fedray_rounds(settings), 0)


def test_a_run_leaves_everything_it_promises(settings, tmp_path):
    import torch

    seen = []
    result = fedray.run(settings, run_dir=tmp_path / "run", watch=seen.append)
    lines = [json.loads(line) for line in (tmp_path / "run/history.jsonl").open()]
    assert [line["round"] for line in lines] == [1, 2]
    assert lines[0].keys() >= KEYS
    party = lines[0]["parties"][0]
    assert (party["name"], party["n_samples"], party["outcome"]) == ("a", 40, "fused")
    assert party["node"] == ray.get_runtime_context().get_node_id()
    state = torch.load(tmp_path / "run/global_model.pt")
    for name, array in result.weights().items():
        assert (state[name].numpy() == array).all()
    from safetensors.numpy import load_file

    arrays = load_file(tmp_path / "run/global_model.safetensors")
    assert_close(
        dict(sorted(arrays.items())), dict(sorted(result.weights().items())), 0
    )
    resolved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert resolved["learning_rate"] == 0.1
    assert "<html" in result.report.read_text()
    assert seen[-1].stage == "done"
    assert [r.round for p in seen for r in p.reports] == [1, 2]
    assert result.accuracy == lines[-1]["accuracy"]


def test_bytes_moved_are_those_that_moved(settings, tmp_path):
    history = fedray.run(settings, run_dir=tmp_path / "run").history
    # two updates, and one broadcast to the one node; round 1 also sends the start model
    assert [r.bytes_moved for r in history] == [4 * MLP_BYTES, 3 * MLP_BYTES]


def test_accuracy_is_weighed_over_the_parties_own_tests(settings, digits, tmp_path):
    settings["parties"][0]["data"] = digits("few", 40, n_test=10)
    settings["parties"][1]["data"] = digits("many", 64, n_test=50, skip=40)
    result = fedray.run(settings, run_dir=tmp_path / "run", rounds=1)
    assert result.history[0].evaluated == 60
    right = result.accuracy * 60
    assert right == pytest.approx(round(right))


def test_the_aggregator_can_hold_the_test_data(settings, digits, tmp_path):
    settings["test_data"] = digits("test", 1, n_test=200)
    result = fedray.run(settings, run_dir=tmp_path / "run", rounds=1)
    assert result.history[0].evaluated == 200
    assert result.history[0].bytes_moved == 3 * MLP_BYTES  # nobody else evaluates


def test_evaluation_can_be_rare(settings, tmp_path):
    history = fedray.run(
        settings, run_dir=tmp_path / "run", rounds=3, evaluate_every=2
    ).history
    assert [report.loss is None for report in history] == [True, False, False]


def test_a_fraction_of_the_parties_trains_each_round(settings, digits, tmp_path):
    names = "abcd"
    settings["parties"] = [{"name": n, "data": digits(n, 20)} for n in names]
    settings |= {"party_fraction": 0.5, "rounds": 4}
    history = fedray.run(settings, run_dir=tmp_path / "run").history
    chosen = [tuple(party.name for party in report.parties) for report in history]
    assert all(len(names) == 2 for names in chosen)
    assert len(set(chosen)) > 1
    assert_close(
        RunFolder(tmp_path / "run").last_checkpoint().weights,
        fedray_rounds(settings),
        0,
    )


@pytest.mark.parametrize("rule", ["iter_avg", "fedavgm", "fedadam"])
def test_every_rule_runs_and_resumes_with_its_state(settings, tmp_path, rule):
    settings["fusion_algorithm"] = rule
    whole = fedray.run(settings, run_dir=tmp_path / "whole", rounds=3)
    fedray.run(settings, run_dir=tmp_path / "parts", rounds=2)
    parts = fedray.run(settings, run_dir=tmp_path / "parts", rounds=3, resume=True)
    assert [report.round for report in parts.history] == [1, 2, 3]
    assert_close(parts.weights(), whole.weights(), 0)
    assert_close(whole.weights(), fedray_rounds(settings | {"rounds": 3}), 0)


def test_batchnorm_buffers_travel_and_keep_their_kind(settings, tmp_path):
    file = tmp_path / "bn.py"
    file.write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784),"
        " nn.Linear(784, 10))\n"
    )
    settings |= {"architecture": f"{file}:net", "rounds": 2, "batch_size": 8}
    weights = fedray.run(settings, run_dir=tmp_path / "run").weights()
    # by hand: 5 and 8 batches, weighed by 40 and 64 samples: 6.85, rounded 7;
    # in round 2 12 and 15: 13.85
    assert weights["1.num_batches_tracked"] == 14
    assert weights["1.num_batches_tracked"].dtype == np.int64
    assert abs(weights["1.running_mean"]).max() > 0


def test_regression_has_a_loss_and_no_accuracy(tmp_path):
    rng = np.random.default_rng(0)
    slope = rng.normal(size=5)
    (tmp_path / "own.py").write_text(
        "import numpy as np\n"
        "from torch import nn\n"
        "class Table:\n"
        "    def __init__(self, path):\n"
        "        self.file = np.load(path)\n"
        "    def get_data(self):\n"
        "        f = self.file\n"
        "        return (f['x'], f['y']), (f['x'][:20], f['y'][:20])\n"
        "    def get_train_counts(self):\n"
        "        return len(self.file['x'])\n"
        "def line():\n"
        "    return nn.Linear(5, 1)\n"
    )
    parties = []
    for name, n in (("a", 50), ("b", 30)):
        x = rng.normal(size=(n, 5)).astype("f4")
        np.savez(tmp_path / f"{name}.npz", x=x, y=(x @ slope).astype("f4"))
        parties.append({"name": name, "data": str(tmp_path / f"{name}.npz")})
    own = tmp_path / "own.py"
    result = fedray.run(
        {
            "architecture": f"{own}:line", "data_handler": f"{own}:Table",
            "loss": "mse_loss", "optimizer": "SGD", "learning_rate": 0.1, "rounds": 15,
            "batch_size": 10, "parties": parties,
        },
        run_dir=tmp_path / "run",
    )  # fmt: skip
    assert result.accuracy is None
    assert result.loss < 1e-3
    np.testing.assert_allclose(result.weights()["weight"][0], slope, atol=0.05)


def test_many_parties_share_one_data_set(settings, tmp_path):
    del settings["parties"]
    settings |= {"partition": {"samples_per_party": 30}, "num_parties": 3, "rounds": 1}
    history = fedray.run(settings, run_dir=tmp_path / "run").history
    assert [p.name for p in history[0].parties] == ["party-0", "party-1", "party-2"]
    assert history[0].evaluated == 1000  # each shipped test digit at exactly one party


def test_a_saved_module_is_the_start_and_the_end(settings, tmp_path):
    import torch
    from support.local_rounds import mlp_of

    settings["seed"] = 3
    torch.save(mlp_of(settings), tmp_path / "model.pt")
    architecture = settings.pop("architecture")
    settings["model_file"] = str(tmp_path / "model.pt")
    result = fedray.run(settings, run_dir=tmp_path / "run")
    module = torch.load(result.model, weights_only=False)
    assert isinstance(module, torch.nn.Sequential)
    for name, array in result.weights().items():
        assert (module.state_dict()[name].numpy() == array).all()
    assert_close(
        result.weights(), fedray_rounds(settings | {"architecture": architecture}), 0
    )


def test_mistakes_of_all_parties_are_reported_at_once_before_round_one(
    settings, digits, tmp_path
):
    bad = np.load(digits("x", 10))
    cases = {
        "missing": str(tmp_path / "nowhere.npz"),
        "labels": str(tmp_path / "labels.npz"),
        "shapes": str(tmp_path / "shapes.npz"),
        "empty": str(tmp_path / "empty.npz"),
    }
    np.savez(cases["labels"], **{**bad, "y_train": bad["y_train"] + 90})
    np.savez(cases["shapes"], **{**bad, "x_train": np.zeros((10, 20, 20), "f4")})
    none = {"x_train": bad["x_train"][:0], "y_train": bad["y_train"][:0]}
    np.savez(cases["empty"], **{**bad, **none})
    settings["parties"] += [{"name": n, "data": path} for n, path in cases.items()]
    with pytest.raises(JoinFailed) as caught:
        fedray.run(settings, run_dir=tmp_path / "run")
    assert set(caught.value.reasons) == set(cases)
    assert "nowhere.npz" in caught.value.reasons["missing"]
    assert not RunFolder(tmp_path / "run").is_started()


def test_labels_outside_the_models_classes_are_an_error(settings, tmp_path):
    file = tmp_path / "three.py"
    file.write_text(
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 3))\n"
    )
    settings["architecture"] = f"{file}:net"
    with pytest.raises(JoinFailed, match=r"labels outside 0\.\.2 .*; needed"):
        fedray.run(settings, run_dir=tmp_path / "run")


def test_a_label_of_no_node_is_an_error_with_the_existing_ones(settings, tmp_path):
    settings["parties"][0]["labels"] = {"fedray-party": "hospital-z"}
    settings["placement_timeout_s"] = 1
    with pytest.raises(PlacementError, match=r"party a: wanted .*hospital-z; found 1"):
        fedray.run(settings, run_dir=tmp_path / "run")


def test_more_cpus_than_the_cluster_has_are_an_error_in_time(settings, tmp_path):
    settings |= {"party_cpus": 3, "placement_timeout_s": 2}
    free = r"3 CPUs.*placement_timeout_s=2.* of 4 CPUs free.*entrypoint.*party_cpus"
    with pytest.raises(PlacementError, match=free):
        fedray.run(settings, run_dir=tmp_path / "run")


def test_config_mistakes_are_reported_together_and_list_what_exists(settings, tmp_path):
    wrong = {"optimizer": "optim.Addam", "loss": "nl_loss", "fusion_algorithm": "avg",
             "data_handler": "mnist", "epocs": 3, "optimizer_args": {}}  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        fedray.run(settings | wrong, run_dir=tmp_path / "run")
    assert len(caught.value.problems) == 5
    assert "did you mean 'Adam" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["optim.lr_scheduler", "optim.__class__", "os.system",
                                  "__import__('os')", "Optimizer"])  # fmt: skip
def test_only_optimizers_are_optimizers(settings, tmp_path, name):
    with pytest.raises(ConfigError, match="unknown optimizer"):
        fedray.run(settings, optimizer=name, run_dir=tmp_path / "run")


def test_optimizer_args_are_tried_before_anything_starts(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"refuses optimizer_args.*momentun"):
        fedray.run(settings, optimizer_args={"momentun": 0.9}, run_dir=tmp_path / "run")


def test_arguments_that_optimizers_stumble_over_are_their_own_mistakes(settings):
    fused = {"betas": [0.9, 0.9], "foreach": True, "fused": True}
    for args in ({"betas": [0.9]}, {"betas": {"a": 1}}, {"betas": []}, fused):
        config = {**settings, "optimizer": "optim.Adam", "optimizer_args": args}
        with pytest.raises(ConfigError, match=r"refuses optimizer_args.*betas"):
            fedray.run(config)


def test_files_that_are_no_models_are_errors(settings, tmp_path):
    del settings["architecture"]
    settings["model_file"] = str(tmp_path / "model.pt")
    with pytest.raises(ConfigError, match=r"model\.pt does not exist"):
        fedray.run(settings, run_dir=tmp_path / "run")
    Path(settings["model_file"]).write_bytes(b"not a model")
    with pytest.raises(ModelFileError, match=r"model\.pt"):
        fedray.run(settings, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_taken_run_folder_stays_as_it_is(settings, tmp_path):
    before = fedray.run(settings, run_dir=tmp_path / "run", rounds=1).weights()
    with pytest.raises(RunFolderError, match=r"already holds a run.*--resume"):
        fedray.run(settings, run_dir=tmp_path / "run", rounds=1)
    assert_close(RunFolder(tmp_path / "run").last_checkpoint().weights, before, 0)


def test_below_quorum_the_error_names_failed_parties_and_reasons(
    trouble, settings, tmp_path
):
    done = fedray.run(settings, run_dir=tmp_path / "run", rounds=1)
    trouble("fail")
    with pytest.raises(RoundFailed, match=r"1 reported, 2 needed.*") as caught:
        fedray.run(settings, run_dir=tmp_path / "run", resume=True)
    assert len(caught.value.failures) == 1
    assert "ValueError: trouble was asked for" in str(caught.value)
    assert "1 round is kept" in str(caught.value)
    assert_close(
        RunFolder(tmp_path / "run").last_checkpoint().weights, done.weights(), 0
    )
    again = fedray.run(settings, run_dir=tmp_path / "run", resume=True)
    assert [report.fused for report in again.history] == [2, 2]


def test_parties_of_different_handlers_train_together(settings, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import numpy\n"
        "class Mine:\n"
        "    def __init__(self, path): self.a = numpy.load(path)\n"
        "    def get_data(self):\n"
        "        a = self.a\n"
        "        return (a['x_train'][:8], a['y_train'][:8]), ([], [])\n"
    )
    settings["parties"][1]["data_handler"] = f"{tmp_path}/mine.py:Mine"
    result = fedray.run(settings, run_dir=tmp_path / "run")
    assert [line.n_samples for line in result.history[0].parties] == [40, 8]
    settings["parties"][1]["data_handler"] = "mnist_pytorhc"
    with pytest.raises(ConfigError, match="did you mean 'mnist_pytorch'"):
        fedray.run(settings, run_dir=tmp_path / "other")


def test_a_party_reads_nothing_outside_its_data_root(settings, tmp_path):
    (tmp_path / "empty").mkdir()
    settings["parties"][0]["data_root"] = str(tmp_path / "empty")
    with pytest.raises(JoinFailed, match="a path that leads elsewhere"):
        fedray.run(settings, run_dir=tmp_path / "run")


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("n_cpus", [0, 0.5])
def test_an_actor_that_waits_for_its_process_alone_has_longer(tmp_path, n_cpus):
    @ray.remote(num_cpus=0)
    class SlowToStart:
        def __init__(self, file: Path):
            while not file.exists():
                time.sleep(0.05)

    timeout_s, node = 5, ray.get_runtime_context().get_node_id()
    pool = ActorPool(range(1), ("a",), Placement(node, {}, n_cpus, 0))
    actor = SlowToStart.remote(tmp_path / "up")

    def poll(stage, waited_s, timeout_s):
        if waited_s > timeout_s:
            (tmp_path / "up").touch()

    if n_cpus:
        with pytest.raises(PlacementError, match="is only busy"):
            wait_until_ready({"a": actor}, [pool], timeout_s)
    else:
        wait_until_ready({"a": actor}, [pool], timeout_s, poll)
