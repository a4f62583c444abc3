"""What a doc2vec model is made of, and its weights as a file and as an answer."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedray.config import Doc2VecSpec, FederationConfig
from fedray.errors import ConfigError, MissingExtra, ModelFileError
from fedray.messages import WordCounts
from fedray.models.base import Blueprint
from fedray.models.doc2vec import file
from fedray.models.doc2vec.initialisation import start_rows
from fedray.models.doc2vec.vocabulary import chosen_words
from fedray.weights import Form, Schema, Weights

SEEN = "seen"  # how often a party used each word: what `share: mean` weighs by
DEFAULTS = {"learning_rate": 0.025}  # gensim's
PASSES = (10, 50)  # over a new document, at least and at most


@dataclass(frozen=True)
class Plan:
    """What every party rebuilds the model from.

    words, counts : (V,) in the order of the rows, counts over all parties.
    run : names this run among all; parties keep their document vectors under it.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...]
    spec: Doc2VecSpec
    seed: int
    learning_rate: float
    passes: int  # over a new document
    run: str


def problems(config: FederationConfig) -> list[str]:
    """Settings that mean nothing here and would else be dropped in silence."""
    found = []
    given = {
        "architecture": config.architecture is not None,
        "optimizer_args": bool(config.optimizer_args),
        "loss_args": bool(config.loss_args),
        "proximal_mu": config.proximal_mu != 0,
        "wire_dtype": config.wire_dtype != "float32",
        "test_data": config.test_data is not None,
        "aggregation": config.aggregation != "always",
        "stacked": config.stacked == "true",
        "groups": config.groups is not None,
    }
    wrong = [key for key, is_given in given.items() if is_given]
    if wrong:
        found.append(f"model_type: doc2vec takes no {', '.join(wrong)}")
    if config.model_file is not None:
        try:
            _check_start(config)
        except (ModelFileError, ConfigError) as error:
            found.append(str(error))
    return found


def read(config: FederationConfig) -> tuple[Blueprint, Weights]:
    """A blueprint without words: `surveyed` completes it. No arrays yet."""
    return Blueprint("doc2vec", None, {}, (), DEFAULTS), {}


def surveyed(
    config: FederationConfig, counts: WordCounts, run: str
) -> tuple[Blueprint, Weights]:
    """The whole blueprint and the initial weights, from what the parties counted.

    Raises
    ------
    ConfigError
        If no word is left.
    """
    config = Blueprint("doc2vec", None, {}, (), DEFAULTS).settle(config)
    plan = _plan(config, counts, run)
    parameters = shared_names(config)
    form = Form((len(plan.words), plan.spec.vector_size), "float32")
    schema: Schema = dict.fromkeys(parameters, form)
    if config.share == "mean":
        schema[SEEN] = Form((len(plan.words),), "float32")
    blueprint = Blueprint("doc2vec", plan, schema, parameters, DEFAULTS)
    return blueprint, _start(config, plan, schema)


def _plan(config: FederationConfig, counts: WordCounts, run: str) -> Plan:
    spec = config.doc2vec
    words = chosen_words(counts, spec)
    if not words:
        found = f"of {len(counts.counts)} words that the parties use none is left"
        asked = f"doc2vec.min_count ({spec.min_count}) or min_parties"
        raise ConfigError([f"{found}: lower {asked} ({spec.min_parties})"])
    low, high = PASSES
    passes = max(low, min(high, config.rounds * config.epochs))
    in_order = tuple(counts.counts[word] for word in words)
    rate = config.learning_rate
    return Plan(tuple(words), in_order, spec, config.seed, rate, passes, run)


def shared_names(config: FederationConfig) -> tuple[str, ...]:
    """Tensors that parties train and send.

    In a bag of words (dm: 0) the word vectors are not trained; with output_only they
    stay at each party.
    """
    whole = config.doc2vec.dm and config.share != "output_only"
    return ("wv", "syn1neg") if whole else ("syn1neg",)


def _start(config: FederationConfig, plan: Plan, schema: Schema) -> Weights:
    """Word vectors small and random by (seed, word), `syn1neg` zero, as gensim does.

    Words that the start model knows have its rows.
    """
    weights = {name: np.zeros(form.shape, np.float32) for name, form in schema.items()}
    if "wv" in weights:
        weights["wv"] = start_rows(plan.seed, plan.words, plan.spec.vector_size)
    if config.model_file is not None:
        start = _check_start(config)
        rows = {word: i for i, word in enumerate(start.words)}
        known = [(i, rows[w]) for i, w in enumerate(plan.words) if w in rows]
        if known:
            ours, theirs = map(list, zip(*known, strict=True))
            for name in shared_names(config):
                weights[name][ours] = start.arrays[name][theirs]
    return weights


def _check_start(config: FederationConfig) -> file.Stored:
    stored, spec = file.read(Path(config.model_file)), config.doc2vec
    got = stored.spec.dm, stored.spec.vector_size
    if got != (spec.dm, spec.vector_size):
        told = f"dm {got[0]}, vector_size {got[1]}"
        needed = f"dm {spec.dm}, vector_size {spec.vector_size}"
        raise ModelFileError(
            config.model_file, f"has {told}; doc2vec asks for {needed}"
        )
    return stored


def write(blueprint: Blueprint, weights: Weights, path: Path) -> None:
    """Write the global model: .npz, or its arrays as .safetensors.

    Raises
    ------
    MissingExtra
        If safetensors is not installed.
    """
    stored = stored_of(blueprint, weights)
    if path.suffix != ".safetensors":
        return file.write(stored, path)
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise MissingExtra("writing .safetensors", "safetensors") from None
    save_file(stored.arrays, path, {"words": "\n".join(stored.words)})


def stored_of(blueprint: Blueprint, weights: Weights) -> file.Stored:
    """The global model as a file holds it, word vectors that nobody shared included."""
    plan = blueprint.plan
    arrays = {name: weights[name] for name in ("wv", "syn1neg") if name in weights}
    if "wv" not in arrays:
        arrays["wv"] = start_rows(plan.seed, plan.words, plan.spec.vector_size)
    settings = (plan.spec, plan.seed, plan.learning_rate, plan.passes, plan.run)
    return file.Stored(plan.words, plan.counts, arrays, *settings)


def read_file(path: Path, config: FederationConfig) -> tuple[Blueprint, Weights]:
    """A finished global model as its federation had it.

    Raises
    ------
    ModelFileError
        If it cannot be read, or is not safe to read.
    """
    stored = file.read(path)
    names = [field.name for field in dataclasses.fields(Plan)]
    plan = Plan(**{name: getattr(stored, name) for name in names})
    parameters = shared_names(config)
    weights = {name: stored.arrays[name] for name in parameters}
    schema = {name: Form(array.shape, "float32") for name, array in weights.items()}
    return Blueprint("doc2vec", plan, schema, parameters, DEFAULTS), weights


def answer(
    blueprint: Blueprint, weights: Weights
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model as plain data: words and a vector for each.

    The vectors of a bag of words (dm: 0), and of output_only, are `syn1neg`'s.
    """
    plan, name = blueprint.plan, blueprint.parameters[0]
    vectors = weights[name]
    info = plan.spec.model_dump() | {
        "vectors": name,
        "shape": list(vectors.shape),
        "dtype": vectors.dtype.name,
        "counts": list(plan.counts),
    }
    return {"words": list(plan.words), "vectors": vectors.tolist()}, info
