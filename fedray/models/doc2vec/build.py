"""Vocabulary, blueprint and initial weights of a doc2vec model; reads and writes it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedray.config import Doc2VecSpec, FederationConfig, RunConfig
from fedray.errors import ConfigError, ModelFileError, format_count
from fedray.models.adapter import ModelSize
from fedray.models.base import Blueprint, write_file
from fedray.models.doc2vec import file
from fedray.models.doc2vec.initialisation import initial_vectors
from fedray.survey import ValueCounts
from fedray.weights import Form, Schema, Weights

# tensor (V,) float32: how often a party used each word, the weights of `share: mean`
USE_COUNTS = "seen"
TENSORS: tuple[str, ...] = ("wv", "syn1neg")
DEFAULTS = {"learning_rate": 0.025}  # gensim's
MIN_PASSES, MAX_PASSES = 10, 50  # over a new document


@dataclass(frozen=True)
class Doc2VecPlan:
    """What every party rebuilds the model from.

    words, counts : (V,) in the order of the rows, counts over all parties.
    passes : over a new document.
    run : a name that no other run has; parties save document vectors under it.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...]
    spec: Doc2VecSpec
    seed: int
    learning_rate: float
    passes: int
    run: str


def problems(config: FederationConfig) -> list[str]:
    """What is wrong with the model that the config starts from."""
    try:
        _read_start_model(config)
    except (ModelFileError, ConfigError) as error:
        return [str(error)]
    return []


def read(config: FederationConfig) -> tuple[Blueprint, Weights]:
    """A blueprint without words and arrays: `complete_blueprint` completes it."""
    return Blueprint("doc2vec", None, {}, (), DEFAULTS), {}


def complete_blueprint(
    config: FederationConfig, counts: ValueCounts, run: str
) -> tuple[Blueprint, Weights]:
    """Blueprint and initial weights of a model of the words that the parties counted.

    Raises
    ------
    ConfigError
        If no word is common enough.
    """
    plan = _make_plan(config.resolve(DEFAULTS), counts, run)
    parameters = shared_tensors(config)
    form = Form((len(plan.words), plan.spec.vector_size), "float32")
    schema: Schema = dict.fromkeys(parameters, form)
    if config.share == "mean":
        schema[USE_COUNTS] = Form((len(plan.words),), "float32")
    blueprint = Blueprint("doc2vec", plan, schema, parameters, DEFAULTS)
    return blueprint, _initial_weights(config, plan, schema)


def model_size(config: FederationConfig, counts: ValueCounts) -> ModelSize:
    """Size of the arrays that every party has: word vectors and output weights."""
    spec = config.doc2vec
    size, n_words = spec.vector_size, len(select_words(counts, spec))
    advice = "lower doc2vec.vector_size, or raise doc2vec.min_count"
    what = f"vectors of {size:,} numbers for {n_words:,} words"
    return ModelSize(len(TENSORS) * n_words * size * 4, what, advice)


def _make_plan(config: RunConfig, counts: ValueCounts, run: str) -> Doc2VecPlan:
    spec = config.doc2vec
    words = select_words(counts, spec)
    if not words:
        n_words = format_count(len(counts.counts), "word")
        got = f"of {n_words} that the parties use none is left"
        settings = f"doc2vec.min_count ({spec.min_count}) or min_parties"
        raise ConfigError([f"{got}: lower {settings} ({spec.min_parties})"])
    return Doc2VecPlan(
        words=tuple(words),
        counts=tuple(counts.counts[word] for word in words),
        spec=spec,
        seed=config.seed,
        learning_rate=config.learning_rate,
        passes=max(MIN_PASSES, min(MAX_PASSES, config.rounds * config.epochs)),
        run=run,
    )


def shared_tensors(config: FederationConfig) -> tuple[str, ...]:
    """Names of the tensors that parties train and send.

    In a bag of words (dm: 0) the word vectors are not trained; with `output_only` each
    party has its own.
    """
    shares_words = config.doc2vec.dm and config.share != "output_only"
    return ("wv", "syn1neg") if shares_words else ("syn1neg",)


def _initial_weights(
    config: FederationConfig, plan: Doc2VecPlan, schema: Schema
) -> Weights:
    """Word vectors random by (seed, word), `syn1neg` zero, as in gensim.

    Words of the start model (`model_file`) have its rows.
    """
    weights = {name: np.zeros(form.shape, np.float32) for name, form in schema.items()}
    if "wv" in weights:
        weights["wv"] = initial_vectors(plan.seed, plan.words, plan.spec.vector_size)
    if start := _read_start_model(config):
        start_rows = {word: row for row, word in enumerate(start.words)}
        common = [
            (row, start_rows[word])
            for row, word in enumerate(plan.words)
            if word in start_rows
        ]
        if common:
            rows, rows_in_start = map(list, zip(*common, strict=True))
            for name in shared_tensors(config):
                weights[name][rows] = start.arrays[name][rows_in_start]
    return weights


def _read_start_model(config: FederationConfig) -> file.StoredModel | None:
    """The model of `model_file`; None if the config has none."""
    if config.model_file is None:
        return None
    stored, spec = file.read(Path(config.model_file)), config.doc2vec
    if (stored.spec.dm, stored.spec.vector_size) != (spec.dm, spec.vector_size):
        got = f"dm {stored.spec.dm}, vector_size {stored.spec.vector_size}"
        needed = f"dm {spec.dm}, vector_size {spec.vector_size}"
        raise ModelFileError(config.model_file, f"has {got}; doc2vec asks for {needed}")
    return stored


def write(blueprint: Blueprint, weights: Weights, path: Path) -> None:
    """Write the global model: .npz, or its arrays as .safetensors.

    Raises
    ------
    ModelFileError
        If it cannot be written; the file appears whole or not at all.
    MissingExtra
        If safetensors is not installed.
    """
    stored = to_stored(blueprint, weights)
    write_file(
        path,
        stored.arrays,
        lambda target: file.write(stored, target),
        metadata={"words": "\n".join(stored.words)},
    )


def to_stored(blueprint: Blueprint, weights: Weights) -> file.StoredModel:
    """The global model as a file holds it.

    Word vectors that are not shared are the initial ones.
    """
    plan: Doc2VecPlan = blueprint.plan
    arrays = {name: weights[name] for name in TENSORS if name in weights}
    if "wv" not in arrays:
        arrays["wv"] = initial_vectors(plan.seed, plan.words, plan.spec.vector_size)
    return file.StoredModel(arrays=arrays, **_fields(plan))


def _fields(model: Doc2VecPlan | file.StoredModel) -> dict[str, Any]:
    """The fields that a plan and a stored model have in common."""
    names = [field.name for field in dataclasses.fields(Doc2VecPlan)]
    return {name: getattr(model, name) for name in names}


def read_file(path: Path, config: FederationConfig) -> tuple[Blueprint, Weights]:
    """Read a finished global model, with the blueprint that its federation had.

    Raises
    ------
    ModelFileError
        If it cannot be read, or is not safe to read.
    """
    stored = file.read(path)
    plan = Doc2VecPlan(**_fields(stored))
    parameters = shared_tensors(config)
    weights = {name: stored.arrays[name] for name in parameters}
    schema = {name: Form(array.shape, "float32") for name, array in weights.items()}
    return Blueprint("doc2vec", plan, schema, parameters, DEFAULTS), weights


def answer(
    blueprint: Blueprint, weights: Weights
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model as plain data: words and a vector for each, and its description.

    The vectors are word vectors; of a bag of words (dm: 0), and with `share:
    output_only`, the rows of `syn1neg`.
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


def select_words(counts: ValueCounts, spec: Doc2VecSpec) -> list[str]:
    """Words of `min_count` uses and `min_parties` parties, in the order of their rows.

    Sorted by count, highest first, then by word.
    """
    words = [
        word
        for word, count in counts.counts.items()
        if count >= spec.min_count and counts.parties[word] >= spec.min_parties
    ]
    return sorted(words, key=lambda word: (-counts.counts[word], word))
