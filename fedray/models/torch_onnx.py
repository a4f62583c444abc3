"""Writes models on torch as ONNX, by torch's own exporter."""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fedray import durable_files, user_code
from fedray.errors import MissingExtra, ModelFileError
from fedray.nested import Nested, arguments, map_arrays

N_SAMPLES = 2  # of the batch that is traced: a batch of one would be taken for the rule


class OneArgument(torch.nn.Module):
    """A module that takes nested samples as one argument, as Keras's models do."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Nested) -> Any:
        """Call it."""
        return self.module(x)


def export(module: torch.nn.Module, x: Nested, path: Path) -> None:
    """Write a module for batches of any size; what one file holds is the whole model.

    x : nested tensors (N, ...), of which the first samples show what it takes.

    Raises
    ------
    ModelFileError
        If torch cannot export it.
    MissingExtra
        If onnx is not installed.
    """
    if not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        raise MissingExtra("fedray export --onnx", "onnx")
    few = map_arrays(_first, x)
    any_size = {0: torch.export.Dim.DYNAMIC}  # of the batch
    args, kwargs = arguments(few)
    shapes: Any = dict.fromkeys(kwargs, any_size) or (any_size,) * len(args)
    if isinstance(module, OneArgument):
        args, kwargs = (), {"x": few}  # of a dict as the last one torch makes names
        shapes = {"x": map_arrays(lambda _: any_size, few)}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(), args, kwargs=kwargs, dynamic_shapes=shapes, dynamo=True,
                verbose=False,
            )  # fmt: skip
            if program is None:
                raise TypeError("the exporter gave nothing")
            with durable_files.replace_file(path) as aside:
                program.save(str(aside))
    except OSError:
        raise
    except Exception as error:  # the exporter raises of every kind
        reason = f"torch cannot export this model: {user_code.describe(error)}"
        raise ModelFileError(str(path), reason) from None


def _first(array: torch.Tensor) -> torch.Tensor:
    """The first samples; of a single one, it again."""
    return array[:N_SAMPLES] if len(array) >= N_SAMPLES else torch.cat([array, array])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporter says as it works."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
