"""Files as other tools write them: checkpoints, shards, prefixes, own classes."""

import json
import sys
import textwrap
import types

import numpy as np
import pytest
import torch
from torch import nn

from fedray import models
from fedray.config import FederationConfig
from fedray.errors import ConfigError, ModelFileError
from fedray.federation.run import read_config

safetensors = pytest.importorskip("safetensors.torch")

CODE = """
    import torch
    from torch import nn

    def net():
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    def short():
        return net().bfloat16()

    def lstm():
        return nn.LSTM(2, 3)

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight
"""


@pytest.fixture
def code(tmp_path):
    file = tmp_path / "net.py"
    file.write_text(textwrap.dedent(CODE))
    return file


@pytest.fixture
def net(code):
    return define(code, "net")


def define(code, name):
    space = {}
    exec(code.read_text(), space)
    return space[name]()


def read(code, path, name="net", **more):
    config = FederationConfig(
        model_file=str(path), architecture=f"{code}:{name}", **more
    )
    return models.named("pytorch").read(config)


def same(weights, module):
    state = module.state_dict()
    assert list(weights) == list(state)
    for name, tensor in state.items():
        assert np.array_equal(weights[name], tensor.float().numpy()), name


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", "model", "net"])
def test_the_model_of_a_training_checkpoint_is_read(code, net, tmp_path, key):
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    path = tmp_path / "ckpt.pt"
    torch.save(
        {
            "epoch": 3, "loss": 0.1, "optimizer": optimizer.state_dict(),
            "args": types.SimpleNamespace(lr=0.1), "best": np.float64(0.5),
            key: net.state_dict(),
        },
        path,
    )  # fmt: skip
    blueprint, weights = read(code, path)
    same(weights, net)
    assert f"its entry '{key}' is used" in blueprint.notes[0]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_a_wrappers_prefix_is_left_out(code, net, tmp_path, prefix):
    path = tmp_path / "m.pt"
    torch.save({prefix + n: t for n, t in net.state_dict().items()}, path)
    blueprint, weights = read(code, path)
    same(weights, net)
    assert prefix in blueprint.notes[0]
    torch.save({"state_dict": torch.load(path)}, path)
    same(read(code, path)[1], net)


def test_other_names_stay_an_error(code, net, tmp_path):
    path = tmp_path / "m.pt"
    torch.save({f"a.{n}x": t for n, t in net.state_dict().items()}, path)
    with pytest.raises(ModelFileError, match="tensors missing"):
        read(code, path)


class Own(nn.Sequential):
    """Stands for a class of the user's, which is not there where the file is read."""


def test_a_model_of_an_own_class_is_read_where_its_architecture_is_given(
    code, net, tmp_path, monkeypatch
):
    module = types.ModuleType("elsewhere")
    module.Own = Own
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    monkeypatch.setattr(Own, "__module__", "elsewhere")
    own = Own(*net)
    own[0].requires_grad_(False)
    own.tools, path = types.SimpleNamespace(a=1), tmp_path / "own.pt"
    torch.save(own, path)
    monkeypatch.delitem(sys.modules, "elsewhere")
    blueprint, weights = read(code, path)
    same(weights, net)
    assert "0.weight" not in blueprint.parameters
    with pytest.raises(ModelFileError, match=r"needs elsewhere.Own.*architecture"):
        models.named("pytorch").read(FederationConfig(model_file=str(path)))


def test_a_whole_lstm_says_what_to_do_and_is_read_with_its_architecture(code, tmp_path):
    path = tmp_path / "lstm.pt"
    lstm = define(code, "lstm")
    torch.save(lstm, path)
    with pytest.raises(
        ModelFileError, match=r"lstm.pt: its layer LSTM is none.*give architecture"
    ):
        models.named("pytorch").read(FederationConfig(model_file=str(path)))
    same(read(code, path, "lstm")[1], lstm)


def test_files_before_torch_1_6_name_the_line_that_converts_them(code, net, tmp_path):
    path = tmp_path / "old.pt"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelFileError, match=r"torch.save\(torch.load\(path"):
        read(code, path)
    torch.save(torch.load(path, weights_only=True), path)
    same(read(code, path)[1], net)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_bfloat16_is_summed_in_float32_and_written_back(code, tmp_path, suffix):
    short, path = define(code, "short"), tmp_path / f"m{suffix}"
    save = torch.save if suffix == ".pt" else safetensors.save_file
    save(short.state_dict(), path)
    blueprint, weights = read(code, path, "short")
    same(weights, short)
    assert weights["0.weight"].dtype == np.float32
    live = models.named("pytorch").make(blueprint, FederationConfig(), "cpu")
    assert live.module[0].weight.dtype == torch.bfloat16
    weights = {n: a + np.float32(1e-4) if a.dtype == np.float32 else a
               for n, a in weights.items()}  # fmt: skip
    out = tmp_path / f"out{suffix}"
    models.named("pytorch").write(blueprint, weights, out)
    again = torch.load(out) if suffix == ".pt" else safetensors.load_file(out)
    for name, tensor in short.state_dict().items():
        assert again[name].dtype == tensor.dtype
        rounded = torch.from_numpy(weights[name]).to(tensor.dtype)
        assert torch.equal(again[name], rounded)
    _, read_file = models.for_file(path)
    assert read_file(path)[0].bfloat16 == {
        n for n, t in short.state_dict().items() if t.dtype == torch.bfloat16
    }


def test_a_whole_module_in_bfloat16_stays_one(code, tmp_path):
    short, path = define(code, "short"), tmp_path / "m.pt"
    torch.save(short, path)
    blueprint, weights = models.named("pytorch").read(
        FederationConfig(model_file=str(path))
    )
    models.named("pytorch").write(blueprint, weights, path)
    again = torch.load(path, weights_only=False)
    for name, tensor in short.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
        assert again.state_dict()[name].dtype == tensor.dtype


def sharded(net, folder):
    folder.mkdir()
    state, where = net.state_dict(), {}
    for i, names in enumerate([list(state)[::2], list(state)[1::2]]):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        safetensors.save_file({n: state[n] for n in names}, folder / file)
        where |= dict.fromkeys(names, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def test_shards_are_read_together(code, net, tmp_path):
    index = sharded(net, tmp_path / "model")
    same(read(code, index)[1], net)
    config = {"model_file": str(tmp_path / "model"), "architecture": f"{code}:net"}
    data = tmp_path / "a.npz"
    data.touch()
    config |= {"parties": [{"name": "a", "data": str(data)}], "rounds": 1}
    assert read_config(config).model_file == str(index)
    shard = tmp_path / "model/model-00002-of-00002.safetensors"
    shard.unlink()
    with pytest.raises(ModelFileError, match=r"shard model-00002.*no such file"):
        read(code, index)
    index.write_text(json.dumps({"weight_map": {"w": "../../etc/passwd"}}))
    with pytest.raises(ModelFileError, match="outside its folder"):
        read(code, index)


def test_a_model_file_may_be_a_run(code, net, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = tmp_path / ".fedray/runs/first"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    data = tmp_path / "a.npz"
    data.touch()
    config = {"architecture": f"{code}:net", "model_file": "first"}
    config |= {"parties": [{"name": "a", "data": str(data)}], "rounds": 1}
    with pytest.raises(ConfigError, match="first is a run without a global model yet"):
        read_config(config)
    torch.save(net.state_dict(), run / "global_model.pt")
    assert read_config(config).model_file == str(run / "global_model.pt")
    by_path = config | {"model_file": str(run)}
    assert read_config(by_path).model_file == str(run / "global_model.pt")
    (run / "global_model.pt").rename(run / "global_model-x.pt")
    torch.save(net.state_dict(), run / "global_model-y.pt")
    with pytest.raises(ConfigError, match=r"several models.*global_model-y.pt"):
        read_config(config)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        ConfigError, match=r"a folder without model.safetensors.index.json"
    ):
        read_config(config | {"model_file": str(empty)})


def test_tied_tensors_are_read_under_either_name_and_written_once(code, tmp_path):
    tied, path = define(code, "Tied"), tmp_path / "tied.safetensors"
    safetensors.save_model(tied, path, {"format": "pt"})
    blueprint, weights = read(code, path, "Tied")
    same(weights, tied)
    assert list(blueprint.round_schema(())) == ["embed.weight"]
    out = tmp_path / "out.safetensors"
    models.named("pytorch").write(blueprint, weights, out)
    with (
        safetensors.safe_open(path, "np") as one,
        safetensors.safe_open(out, "np") as two,
    ):
        assert two.metadata() == one.metadata() == {
            "format": "pt", "head.weight": "embed.weight",
        }  # fmt: skip
        assert two.keys() == one.keys()
    safetensors.load_model(define(code, "Tied"), out)
    state = {"head.weight": tied.head.weight.detach()}
    safetensors.save_file(state, path)
    same(read(code, path, "Tied")[1], tied)
    state["embed.weight"] = state["head.weight"] + 1
    safetensors.save_file(state, path)
    with pytest.raises(ModelFileError, match=r"are one in the architecture \(tied\)"):
        read(code, path, "Tied")


def test_adapters_start_on_a_base_and_are_left_beside_the_model(tmp_path):
    peft = pytest.importorskip("peft")
    code = tmp_path / "gpt.py"
    code.write_text(
        textwrap.dedent(
            """
            def base():
                from transformers import GPT2Config, GPT2LMHeadModel
                return GPT2LMHeadModel(GPT2Config(
                    vocab_size=9, n_positions=4, n_embd=8, n_layer=1, n_head=2,
                    bos_token_id=0, eos_token_id=0))

            def lora():
                from peft import LoraConfig, get_peft_model
                return get_peft_model(base(), LoraConfig(
                    r=2, target_modules=["c_attn"], fan_in_fan_out=True))
            """
        )
    )
    base, path = define(code, "base"), tmp_path / "base.safetensors"
    safetensors.save_model(base, path, {"format": "pt"})
    blueprint, weights = read(code, path, "lora")
    assert all("lora_" in name for name in blueprint.parameters)
    assert "2 new adapters" in blueprint.notes[0]
    ours = weights["base_model.model.transformer.h.0.attn.c_attn.base_layer.weight"]
    assert np.array_equal(ours, base.transformer.h[0].attn.c_attn.weight.detach())
    weights |= {n: weights[n] + np.float32(1) for n in blueprint.parameters}
    models.named("pytorch").save_adapter(blueprint, weights, tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").state_dict()
    for name in blueprint.parameters:
        assert np.array_equal(loaded[name].numpy(), weights[name])


@pytest.mark.parametrize("model_type", ["pytorch", "sklearn"])
def test_a_folder_without_a_model_is_one_mistake(model_type, tmp_path):
    with pytest.raises(ConfigError) as caught:
        read_config({"model_file": str(tmp_path), "model_type": model_type})
    assert not [one for one in caught.value.problems if "does not exist" in one]
    assert "is a folder without" in caught.value.problems[0]
