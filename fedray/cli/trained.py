"""``fedray evaluate``, ``predict``, ``export``: use a trained model."""

import argparse
import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedray.config import read_overrides
from fedray.errors import ConfigError

PARTS = ("train", "test", "all")  # of the data


def add(commands: Any) -> None:
    """Add the commands to the parser."""
    evaluate = commands.add_parser(
        "evaluate", help="score a trained model on data with targets"
    )
    _add_model(evaluate)
    _add_data(evaluate)
    evaluate.add_argument(
        "--json", action="store_true", help="print one JSON object, for scripts"
    )
    evaluate.set_defaults(command=_evaluate)
    predict = commands.add_parser(
        "predict", help="write a trained model's predictions for data"
    )
    _add_model(predict)
    _add_data(predict)
    predict.add_argument(
        "--out", required=True, metavar="FILE", help="predictions: .csv or .npz"
    )
    predict.set_defaults(command=_predict)
    export = commands.add_parser("export", help="write a trained model as ONNX")
    _add_model(export)
    export.add_argument("--onnx", required=True, metavar="FILE", help="file to write")
    export.add_argument(
        "--shape",
        metavar="N,N,...",
        help="shape of one sample of 32-bit floats, such as 1,28,28",
    )
    _add_data(export, is_required=False)
    export.set_defaults(command=_export)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run's folder or name, an ensemble's folder, or a model file",
    )
    parser.add_argument(
        "--best",
        action="store_true",
        help="the best round's model, of a run with keep_best (default: the last)",
    )
    parser.add_argument(
        "--party",
        metavar="NAME",
        help="this party's own model, on its node (personal, ditto_lambda, "
        "finetune_epochs)",
    )


def _add_data(parser: argparse.ArgumentParser, is_required: bool = True) -> None:
    parser.add_argument(
        "--data", required=is_required, metavar="PATH", help="samples, as a party's"
    )
    parser.add_argument(
        "--data-handler",
        metavar="HANDLER",
        help="how they are read: a name, or file.py:ClassName (default: as in the run)",
    )
    parser.add_argument(
        "--data-args",
        metavar="MAPPING",
        help="the handler's options, such as '{target: price}' (default: as in the "
        "run)",
    )
    parser.add_argument(
        "--part",
        choices=PARTS,
        help="of data that has training and test samples of its own (default: test)",
    )


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """How the samples are read."""
    options = {"handler": arguments.data_handler, "part": arguments.part}
    if arguments.data_args is not None:
        settings, problems = read_overrides([f"data_args={arguments.data_args}"])
        if problems or not isinstance(settings.get("data_args"), dict):
            needed = "--data-args takes a mapping, such as '{target: price}'"
            raise ConfigError(problems or [needed])
        options["options"] = settings["data_args"]
    return options


def _load(arguments: argparse.Namespace) -> Any:
    from fedray.ensemble import load

    return load(arguments.model, best=arguments.best, party=arguments.party)


def _evaluate(arguments: argparse.Namespace) -> None:
    from fedray.ensemble import DataSource, evaluate_data

    _ignore_warnings()
    source = DataSource(arguments.data, **_options(arguments))
    score = evaluate_data(_load(arguments), source)
    if arguments.json:
        fields = score._asdict() | {"metrics": dict(score.metrics)}
        print(json.dumps({k: v for k, v in fields.items() if k != "metrics" or v}))
        return
    part = "" if score.part == "all" else f"{score.part} "
    print(f"{score.n_samples:,} {part}samples of {arguments.data}")
    if score.loss is not None:
        print(f"loss      {score.loss:.6g}")
    if score.accuracy is not None:
        print(f"accuracy  {score.accuracy:.6g}")
    for name, value in score.metrics.items():
        print(f"{name:<8}  {_metric_text(value)}")


def _metric_text(value: Any) -> str:
    """A number; lists in brackets, a matrix with a line for each row."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "".join(f"\n  {'  '.join(map(str, row))}" for row in value)
    if isinstance(value, list):
        return f"[{', '.join(map(_metric_text, value))}]"
    return "not defined for these samples" if value is None else f"{value:.6g}"


def _predict(arguments: argparse.Namespace) -> None:
    from fedray.ensemble import DataSource, write_predictions

    _ignore_warnings()
    source, out = DataSource(arguments.data, **_options(arguments)), arguments.out
    model = _load(arguments)
    with _writing(out):
        n_samples, part = write_predictions(model, source, Path(out))
    of_part = "" if part == "all" else f" the {part}"
    print(f"{n_samples:,} predictions for{of_part} samples of {arguments.data}: {out}")


def _export(arguments: argparse.Namespace) -> None:
    from fedray.ensemble import DataSource, export_onnx

    _ignore_warnings()
    data = arguments.data
    source = DataSource(data, **_options(arguments)) if data else None
    model, shape = (
        _load(arguments),
        _shape(arguments.shape),
    )
    with _writing(arguments.onnx):
        export_onnx(model, Path(arguments.onnx), source, shape)
    print(f"{arguments.model} as ONNX: {arguments.onnx}")
    if any(member.codes and member.codes.normalize for member in model.members):
        print("its inputs have to be standardised by the run's normalization.json")


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    """Say why a file cannot be written, such as a folder that does not exist."""
    try:
        yield
    except OSError as error:
        reason = f"{path} cannot be written: {error.strerror or error}"
        raise ConfigError([reason]) from None


def _ignore_warnings() -> None:
    """What frameworks warn of was said in training."""
    warnings.simplefilter("ignore")


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        shape = tuple(int(number) for number in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ConfigError([f"--shape {text!r}: whole numbers such as 1,28,28 needed"])
    return shape
