"""Hugging Face transformers, made from configs with random weights: no downloads."""

import numpy as np
import pytest
import torch
from test_loss_domains import joiner
from torch.nn import functional

from fedray.errors import DataError
from fedray.models.base import PartySlice

pytest.importorskip("transformers", reason="needs the package transformers")

NETS = """
from transformers import BertConfig, BertForSequenceClassification
from transformers import BertForTokenClassification, GPT2Config, GPT2LMHeadModel

SMALL = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1}
BERT = SMALL | {"num_attention_heads": 2, "intermediate_size": 16, "num_labels": 3}

def classifier(): return BertForSequenceClassification(BertConfig(**BERT))
def tagger(): return BertForTokenClassification(BertConfig(**BERT))
def causal():
    config = GPT2Config(vocab_size=30, n_positions=12, n_embd=8, n_layer=1, n_head=2)
    return GPT2LMHeadModel(config)
"""
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 30, (12, 6))
INPUTS = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
LABELS = np.arange(12) % 3
CE = "cross_entropy"


@pytest.fixture(scope="module")
def join(tmp_path_factory):
    return joiner(tmp_path_factory.mktemp("nets"), NETS, "pytorch")


def train(model, samples):
    """One pass over all samples in one batch; its loss."""
    return model.train(samples, PartySlice(np.arange(12), 1))


def logits(model, **inputs):
    model.module.eval()
    with torch.no_grad():
        tensors = {name: torch.from_numpy(one) for name, one in inputs.items()}
        return model.module(**tensors).logits


def test_a_classifier_with_ids_and_a_mask_trains_by_a_named_loss(join):
    model, samples = join("classifier", CE, LABELS, INPUTS)
    out = logits(model, **INPUTS)
    expected = functional.cross_entropy(out, torch.from_numpy(LABELS)).item()
    right = (out.argmax(1).numpy() == LABELS).mean()
    assert model.evaluate(samples).means == (pytest.approx(expected), right)
    assert train(model, samples) > 0
    assert model.predict(INPUTS).shape == (12, 3)


def test_a_classifier_trains_by_its_own_loss(join):
    model, samples = join("classifier", "model", LABELS, INPUTS)
    expected = functional.cross_entropy(
        logits(model, **INPUTS), torch.from_numpy(LABELS)
    ).item()
    assert model.evaluate(samples).means == (pytest.approx(expected), None)
    assert model.evaluate(samples).weights == (12, 0)


def test_a_causal_model_shifts_its_labels_itself(join):
    """Its loss over batches is the mean of the labels that count but for the first."""
    labels = IDS.copy()
    labels[3:7, 2:] = -100
    model, samples = join("causal", "model", labels, IDS, batch_size=4)
    out = logits(model, input_ids=IDS)[:, :-1]
    counted = labels[:, 1:] != -100
    target = torch.from_numpy(labels[:, 1:][counted])
    expected = functional.cross_entropy(out[counted], target).item()
    assert model.evaluate(samples).means == (pytest.approx(expected, rel=1e-5), None)
    assert model.evaluate(samples).weights == (counted.sum(), 0)
    assert train(model, samples) > 0


def test_a_causal_model_trains_by_cross_entropy_over_positions(join):
    labels = np.roll(IDS, -1, axis=1)
    labels[:, -1] = -100
    args = {"ignore_index": -100}
    model, samples = join("causal", CE, labels, {"input_ids": IDS}, loss_args=args)
    out = logits(model, input_ids=IDS)
    target = torch.from_numpy(labels[:, :-1].ravel())
    expected = functional.cross_entropy(out[:, :-1].reshape(-1, 30), target).item()
    right = (out.argmax(-1).numpy() == labels)[:, :-1].mean()
    assert model.evaluate(samples).means == (pytest.approx(expected, rel=1e-5), right)
    assert model.predict({"input_ids": IDS}).sum(-1) == pytest.approx(np.ones((12, 6)))


def test_a_token_classifier_counts_the_first_label_too(join):
    labels = RNG.integers(0, 3, IDS.shape)
    labels[5:] = -100
    model, samples = join("tagger", "model", labels, INPUTS)
    expected = functional.cross_entropy(
        logits(model, **INPUTS)[:5].reshape(-1, 3), torch.from_numpy(labels[:5].ravel())
    ).item()
    assert model.evaluate(samples).means[0] == pytest.approx(expected, rel=1e-5)
    assert model.evaluate(samples).weights == (30, 0)


def test_as_many_positions_as_classes_have_classes_last_in_an_object(join):
    labels = RNG.integers(0, 3, (12, 3))
    inputs = {name: array[:, :3] for name, array in INPUTS.items()}
    model, samples = join("tagger", CE, labels, inputs)
    expected = functional.cross_entropy(
        logits(model, **inputs).reshape(-1, 3), torch.from_numpy(labels.ravel())
    ).item()
    assert model.evaluate(samples).means[0] == pytest.approx(expected, rel=1e-5)


def test_inputs_that_a_transformer_does_not_take_are_named(join):
    with pytest.raises(DataError, match=r"forward has no 'tokens', but input_ids, att"):
        join("classifier", CE, LABELS, {"tokens": IDS})
    with pytest.raises(DataError, match=r"ids outside 0\.\.29"):
        join("classifier", CE, LABELS, INPUTS | {"input_ids": IDS + 5})
