"""Tensors that neither train nor move travel once, and are kept once."""

import numpy as np
import pytest
from support.comparison import assert_close
from support.local_rounds import fedray_rounds

import fedray
from fedray.checkpoint import RunFolder
from fedray.errors import ConfigError, RoundFailed, RunFolderError
from fedray.federation.check import check
from fedray.federation.run import read_config
from fedray.weights import load

pytestmark = pytest.mark.usefixtures("cluster")

MODELS = '''
    import os

    import torch
    from torch import nn

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.out = nn.Linear(784, 8, bias=False), nn.Linear(8, 10)
            self.again, self.square = nn.Linear(8, 8), nn.Linear(8, 8)
            self.again.weight = self.square.weight

        def forward(self, x):
            return self.out(self.square(self.again(self.into(x.flatten(1)))))

    class Late(nn.Module):
        """Moves a frozen tensor in its third step, not in the first."""

        def __init__(self):
            super().__init__()
            self.base, self.head = nn.Linear(784, 8), nn.Linear(8, 10)
            self.base.requires_grad_(False)
            self.n_calls = 0

        def forward(self, x):
            self.n_calls += self.training
            if self.n_calls == 3:
                self.base.weight.data += 1
            return self.head(self.base(x.flatten(1)))

    def transfer():
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 32), nn.BatchNorm1d(32), nn.ReLU(),
            nn.Linear(32, 10),
        )
        net[1].requires_grad_(False)
        return net

    def plain():
        net = transfer()
        return net.requires_grad_(True)

    def changing():
        net = transfer()
        if os.path.exists(FOLDER + "/other"):
            net[1].weight.data += 1
        return net

    class Killer(nn.Sequential):
        """Dies, or kills the aggregator, in its third call in training; once of all."""

        victim, n_calls = "party", 0

        def forward(self, x):
            self.n_calls += self.training
            if self.n_calls == 3 and not os.path.exists(FOLDER + "/died"):
                open(FOLDER + "/died", "x").close()
                if self.victim == "party":
                    os._exit(1)
                import ray

                aggregator = ray.get_actor("aggregator:run", namespace="fedray")
                ray.kill(aggregator, no_restart=False)
            return super().forward(x)

    def kills_party():
        return Killer(*transfer())

    def kills_aggregator():
        net = Killer(*transfer())
        net.victim = "aggregator"
        return net

    def moving():
        net = nn.Sequential(nn.Flatten(), Shift(), nn.Linear(784, 10))
        return net

    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.zeros(784), requires_grad=False)

        def forward(self, x):
            if self.training:
                with torch.no_grad():
                    self.by += x.mean(0) / 100
            return x + self.by

    FOLDER = %r
'''
FROZEN = 4 * (784 * 32 + 32)  # bytes of transfer's first layer
SENT = 4 * (2 * 32 + 2 * 32 + 32 * 10 + 10) + 8  # of all else; a counter has 8 bytes

UNTRAINED = FROZEN + 4 * 2 * 32 + 8


@pytest.fixture
def model(tmp_path, settings):
    import textwrap

    file = tmp_path / "models.py"
    file.write_text(textwrap.dedent(MODELS) % str(tmp_path))

    def use(name, **more):
        return settings | {"architecture": f"{file}:{name}"} | more

    return use


def test_what_neither_trains_nor_moves_travels_once(model, tmp_path):
    config = model("transfer", rounds=3)
    result = fedray.run(config, run_dir=tmp_path / "run")
    # by round: updates of two parties and a broadcast, of the start too in round 1,
    # and there what does not train to each of two actors
    assert [r.bytes_moved for r in result.history] == [
        4 * SENT + 2 * UNTRAINED, 3 * SENT, 3 * SENT,
    ]  # fmt: skip
    assert_close(result.weights(), fedray_rounds(config), 0)
    once = load(tmp_path / "run/frozen/weights.npz")
    assert list(once) == ["1.weight", "1.bias"]
    kept = RunFolder(tmp_path / "run").newest_checkpoint()[0].weights
    assert not once.keys() & kept.keys()
    assert list(result.weights()) == [
        "1.weight", "1.bias", "2.weight", "2.bias", "2.running_mean", "2.running_var",
        "2.num_batches_tracked", "4.weight", "4.bias",
    ]  # fmt: skip


def test_the_check_tells_what_trains_and_what_is_frozen(model, tmp_path):
    config = read_config(model("transfer"))
    found = check(config)
    assert found.problems == []
    assert found.model["n_parameters"] == 2 * 32 + 32 * 10 + 10
    assert found.model["n_frozen"] == 784 * 32 + 32
    assert found.bytes_per_round == 3 * SENT
    with pytest.raises(ConfigError, match=r"'1.wieght' matches no tensor.*1.weight"):
        fedray.run(model("plain", trainable=["1.wieght"]), run_dir=tmp_path / "run")


def test_a_pattern_freezes_the_rest_and_one_for_all_gives_todays_bits(model, tmp_path):
    frozen = model("plain", trainable=["4.*"])
    result = fedray.run(frozen, run_dir=tmp_path / "run")
    assert result.history[1].bytes_moved == 3 * (4 * (2 * 32 + 32 * 10 + 10) + 8)
    assert_close(result.weights(), fedray_rounds(frozen), 0)
    whole = fedray.run(model("plain"), run_dir=tmp_path / "whole")
    every = fedray.run(model("transfer", trainable=["*"]), run_dir=tmp_path / "every")
    assert_close(whole.weights(), every.weights(), 0)
    assert [r.bytes_moved for r in whole.history] == [
        r.bytes_moved for r in every.history
    ]


def test_a_frozen_tensor_that_the_module_moves_travels(model, tmp_path):
    config = model("moving")
    result = fedray.run(config, run_dir=tmp_path / "run")
    assert result.history[1].bytes_moved == 3 * 4 * (784 + 784 * 10 + 10)
    assert_close(result.weights(), fedray_rounds(config), 0)
    assert np.abs(result.weights()["1.by"]).max() > 0


def test_a_frozen_tensor_that_moves_later_is_an_error(model, tmp_path):
    config = model("Late", epochs=3, batch_size=20)
    with pytest.raises(RoundFailed, match=r"moved base.weight.*give trainable a patt"):
        fedray.run(config, run_dir=tmp_path / "run")
    named = config | {"trainable": ["head.*", "base.*"]}
    fedray.run(named, run_dir=tmp_path / "named")


def test_tied_tensors_travel_once(model, tmp_path):
    import torch

    config = model("Tied")
    result = fedray.run(config, run_dir=tmp_path / "run")
    n_bytes = 4 * (784 * 8 + 8 * 10 + 10 + 8 * 8 + 2 * 8)
    assert result.history[1].bytes_moved == 3 * n_bytes
    weights = result.weights()
    assert_close(weights, fedray_rounds(config), 0)
    assert np.array_equal(weights["again.weight"], weights["square.weight"])
    module = result_module(config, torch)
    module.load_state_dict(torch.load(result.model))
    from safetensors.torch import load_model

    other = result_module(config, torch)
    load_model(other, tmp_path / "run/global_model.safetensors")
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    again = config | {"model_file": str(tmp_path / "run/global_model.safetensors")}
    fedray.run(again, run_dir=tmp_path / "again", rounds=1)


def result_module(config, torch):
    import runpy

    file, _, name = config["architecture"].partition(":")
    return runpy.run_path(file)[name]()


@pytest.mark.parametrize(
    "more",
    [
        {"aggregation": "adaptive", "drift_threshold": 1e-9},
        {"fusion_algorithm": "best_model"},
        {"fusion_algorithm": "median"},
        {"fusion_algorithm": "fedadam"},
        {"wire_dtype": "float16"},
        {"groups": {"by": "similarity", "k": 2}, "fusion_algorithm": "fedavg"},
        {"fusion_algorithm": "ensemble"},
    ],
    ids=lambda more: str(next(iter(more.values()))),
)
def test_every_way_of_fusing_goes_on_with_the_same_bits(model, tmp_path, more):
    config = model("transfer", rounds=3, **more)
    whole = fedray.run(config, run_dir=tmp_path / "whole")
    fedray.run(config | {"rounds": 2}, run_dir=tmp_path / "cut")
    cut = fedray.run(config, run_dir=tmp_path / "cut", resume=True)
    groups = RunFolder(tmp_path / "whole").groups()
    for group in groups:
        assert_close(cut.weights(group), whole.weights(group), 0)
        frozen = whole.weights(group)["1.weight"]
        assert frozen.shape == (32, 784)
    assert all(r.bytes_moved < FROZEN for r in whole.history[len(groups) :])


@pytest.mark.parametrize("victim", ["party", "aggregator"])
def test_an_actor_that_dies_gets_the_frozen_tensors_again(model, tmp_path, victim):
    config = model("transfer", rounds=4)
    whole = fedray.run(config, run_dir=tmp_path / "whole")
    flag = tmp_path / "died"
    result = fedray.run(model(f"kills_{victim}", rounds=4), run_dir=tmp_path / "run")
    assert flag.exists()
    assert_close(result.weights(), whole.weights(), 0)
    n_more = sum(r.bytes_moved for r in result.history)
    n_more -= sum(r.bytes_moved for r in whole.history)
    if victim == "party":
        assert n_more == UNTRAINED
    else:  # the actors still have them; a broadcast is counted anew
        assert n_more < UNTRAINED


def test_a_run_whose_base_lies_in_its_folder_alone_is_resumed(model, tmp_path):
    config = model("changing", rounds=3)
    whole = fedray.run(config, run_dir=tmp_path / "whole")
    fedray.run(config | {"rounds": 2}, run_dir=tmp_path / "run")
    (tmp_path / "other").touch()  # from here on the architecture has other numbers
    result = fedray.run(config, run_dir=tmp_path / "run", resume=True)
    assert_close(result.weights(), whole.weights(), 0)
    (tmp_path / "run/frozen/weights.npz").write_bytes(b"damaged")
    with pytest.raises(RunFolderError, match=r"frozen/weights.npz.*is lost or damaged"):
        fedray.run(config | {"rounds": 4}, run_dir=tmp_path / "run", resume=True)


KERAS = """
    import keras

    def transfer():
        base = keras.Sequential([
            keras.layers.Flatten(), keras.layers.Dense(32),
            keras.layers.BatchNormalization(), keras.layers.Dropout(0.1),
        ])
        base.trainable = False
        return keras.Sequential(
            [keras.Input((28, 28, 1)), base, keras.layers.Dense(10)]
        )

    def plain():
        net = transfer()
        net.layers[0].trainable = True
        return net
"""


def test_a_frozen_base_of_keras_travels_once(tmp_path, settings):
    import textwrap

    file = tmp_path / "k.py"
    file.write_text(textwrap.dedent(KERAS))
    config = settings | {
        "model_type": "keras", "data_handler": "mnist_keras",
        "architecture": f"{file}:transfer",
    }  # fmt: skip
    result = fedray.run(config, run_dir=tmp_path / "run")
    n_head, n_base = 4 * (32 * 10 + 10), 4 * (784 * 32 + 5 * 32)
    assert [r.bytes_moved for r in result.history] == [
        4 * n_head + 2 * n_base, 3 * n_head,
    ]  # fmt: skip
    assert_close(result.weights(), fedray_rounds(config), 0)
    named = config | {"architecture": f"{file}:plain", "trainable": ["dense*", "*a"]}
    moved = fedray.run(named, run_dir=tmp_path / "named").history[1].bytes_moved
    # gamma and beta train, and their layer moves its two means
    assert moved == 3 * (n_head + 4 * 4 * 32)
    opened = config | {"trainable": ["*kernel"], "rounds": 1}
    result = fedray.run(opened, run_dir=tmp_path / "opened")
    start = fedray_rounds(opened | {"rounds": 0 + 1})
    assert_close(result.weights(), start, 0)


LORA = """
    import numpy as np

    def lora():
        from peft import LoraConfig, get_peft_model
        from transformers import GPT2Config, GPT2LMHeadModel

        base = GPT2LMHeadModel(GPT2Config(
            vocab_size=9, n_positions=4, n_embd=8, n_layer=1, n_head=2,
            bos_token_id=0, eos_token_id=0))
        return get_peft_model(base, LoraConfig(
            r=2, target_modules=["c_attn"], fan_in_fan_out=True))

    class Tokens:
        def __init__(self, path):
            pass

        def get_data(self):
            x = np.random.default_rng(0).integers(9, size=(12, 4))
            return (x, x), (x[:2], x[:2])
"""


def test_loras_frozen_tensors_are_bit_equal_at_the_end(tmp_path, settings):
    import textwrap

    peft = pytest.importorskip("peft")
    file = tmp_path / "gpt.py"
    file.write_text(textwrap.dedent(LORA))
    config = settings | {
        "architecture": f"{file}:lora", "data_handler": f"{file}:Tokens",
        "loss": "model",
    }  # fmt: skip
    from fedray import models
    from fedray.config import parse

    result = fedray.run(config, run_dir=tmp_path / "run")
    blueprint, start = models.named("pytorch").read(parse(config)[0])
    end = result.weights()
    assert list(end) == list(start)
    for name in end:
        is_equal = np.array_equal(start[name], end[name])
        assert is_equal != (name in blueprint.parameters), name
    settings = peft.PeftConfig.from_pretrained(tmp_path / "run/adapter")
    assert settings.r == 2
