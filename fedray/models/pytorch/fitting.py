"""Whether a party's samples and targets fit a PyTorch model and its loss.

A few samples go through the model before round 1. Errors say shapes, never values.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fedray import user_code
from fedray.errors import DataError, format_count
from fedray.models import loss_domains
from fedray.models.loss_domains import check_range
from fedray.models.pytorch.losses import Loss, ModelLoss, NamedLoss, OwnLoss
from fedray.models.pytorch.outputs import (
    call_module,
    has_classes_last,
    main_output,
    output_beside_loss,
    own_loss,
)
from fedray.models.torch_samples import TensorSamples, TorchSamples
from fedray.models.torch_trial import bounded_embeddings
from fedray.nested import (
    Nested,
    arguments,
    arrays,
    describe,
    is_one,
    length,
    map_arrays,
    take,
)

N_NAMES = 8  # of a module's inputs that an error lists
NO_TARGETS = "no targets, so that the inputs are the targets"


def default_targets(loss: Loss, x: Nested, y: Nested) -> Nested:
    """Targets, where there are none: the inputs, but for a loss of the model's own."""
    return x if y is None and not isinstance(loss, ModelLoss) else y


def find_shape(
    loss: Loss, module: nn.Module, x: Nested, y: Nested
) -> tuple[int, ...] | None:
    """Shape of one sample's output, where it says what targets are; else None.

    The loss is told where its classes are.
    """
    if not isinstance(loss, NamedLoss) or not loss.use.domain.has_classes:
        return None
    if not is_one(y) or y.ndim < 2:
        return None
    was_training = module.training
    try:
        return _find_classes(loss, module, x, y)
    finally:
        module.train(was_training)


def convert_targets(
    loss: Loss, y: Nested, dtype: torch.dtype, shape: tuple[int, ...] | None
) -> Nested:
    """Targets as a loss takes them; what it does not take stays, for `check` to tell.

    Labels int64 where the loss takes classes and `y` names them; else floats in the
    model's `dtype`.

    Parameters
    ----------
    y : tensors on the model's device, or None.
    shape : of one sample's output, as `find_shape` finds it.
    """
    if y is None:
        return None
    if not isinstance(loss, NamedLoss):
        return map_arrays(lambda array: _convert(array, dtype), y)
    if not is_one(y):
        return map_arrays(lambda array: array.to(dtype), y)
    if not loss.use.domain.has_classes:
        return y.to(dtype)
    labels = loss_domains.to_labels(y, shape, loss.use.class_axis)
    if labels is not None:
        return labels
    return y.to(dtype) if y.ndim > 1 and y.dtype != torch.int64 else y


def _convert(array: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Targets of a loss that alone knows them: whole numbers stay whole numbers."""
    if array.is_floating_point():
        return array.to(dtype)
    return array if array.dtype == torch.bool else array.long()


def check(source: str, loss: Loss, module: nn.Module, samples: TorchSamples) -> None:
    """Compare samples and all their targets with a model and its loss.

    Raises
    ------
    DataError
        If the model does not take the samples, or the loss its outputs or the targets.
    """
    few, outputs = None, list[torch.Tensor]()
    n_labels: float | None = None
    for x, y in samples.blocks():
        check_range(source, x, y)
        if few is None:
            few = samples.extremes()
            outputs = _check_few(source, loss, module, few)
        if isinstance(loss, NamedLoss):
            _check_targets(source, loss, outputs, x, y)
        if (weight := loss.weigh(y)) is not None:
            n_labels = (n_labels or 0.0) + float(weight)
    if n_labels == 0:
        ignored = loss.use.ignored if isinstance(loss, NamedLoss) else None
        label = loss_domains.IGNORED if ignored is None else ignored
        got = f"no label that counts: each is {label}, or has a weight of 0"
        raise DataError(source, got, "labels to learn from")


def _check_few(
    source: str, loss: Loss, module: nn.Module, few: TensorSamples
) -> list[torch.Tensor]:
    """Try a few samples; a named loss's output under two sets of weights."""
    if isinstance(loss, NamedLoss):
        returned = run(module, source, few.x)
        outputs = [_require_output(returned, loss, source, few.x)]
        if loss.use.domain.outputs != "any":
            outputs += compute_random_outputs(module, few.x, loss.entry)
        return outputs
    labels = few.y if loss.takes_labels else None
    returned = run(module, source, few.x, labels)
    if isinstance(loss, ModelLoss):
        own_loss(returned, source)
        loss.skips_first = _skips_first(module, few)
    else:
        _check_own_loss(source, loss, returned, few.y)
    return []


def _check_targets(
    source: str, loss: NamedLoss, outputs: list[torch.Tensor], x: Nested, y: Nested
) -> None:
    name = loss.use.name
    if not is_one(y):
        got = f"targets of {describe(y)}, for loss {name}"
        what = f"{NO_TARGETS}, of {describe(x)}, for loss {name}"
        needed = (
            "one array of targets; loss: file.py:function takes several, and loss: "
            "model gives them to the model"
        )
        raise DataError(source, what if y is x else got, needed)
    _check_axis(source, loss, outputs[0], y)
    _check_weights(source, loss, outputs[0])
    if y.is_floating_point() and loss.use.ignored is not None:
        got = f"rows of probabilities, for loss {name} with ignore_index"
        raise DataError(source, got, "labels, which ignore_index leaves out")
    try:
        loss_domains.check(source, loss.use, outputs, y)
    except DataError as error:
        if y is not x:
            raise
        raise DataError(source, f"{NO_TARGETS}: {error.got}", error.needed) from None


def _check_axis(source: str, loss: NamedLoss, out: torch.Tensor, y: Any) -> None:
    """Refuse an axis that is none, and an output whose axis of classes may be any."""
    axis, shape = loss.use.class_axis, tuple(out.shape[1:])
    if not loss.use.domain.has_classes or len(shape) < 1:
        return
    if not 1 <= (axis if axis > 0 else out.ndim + axis) < out.ndim:
        needed = f"an axis of the model's output {list(out.shape)}, samples being 0"
        raise DataError(source, f"loss_args: class_axis {axis}", needed)
    if loss.has_own_axis or loss.has_named_output or len(shape) != 2:
        return
    if len(loss_domains.find_class_axes(y, shape)) > 1 and shape != tuple(y.shape[1:]):
        got = (
            f"a model output of shape {['N', *shape]} and labels of shape "
            f"{['N', *y.shape[1:]]}".replace("'", "")
            + ", which do not tell the axis of classes"
        )
        needed = (
            "loss_args: {class_axis: 1} for classes before positions, as in PyTorch, "
            "or {class_axis: -1} for classes last"
        )
        raise DataError(source, got, needed)


def _check_weights(source: str, loss: NamedLoss, out: torch.Tensor) -> None:
    """Refuse weights that are not one for each class or output."""
    has_classes = loss.use.domain.has_classes
    for key, weight in loss.args.items():
        if not isinstance(weight, torch.Tensor) or not weight.ndim:
            continue
        n_classes = out.shape[loss.use.class_axis] if has_classes else 1
        got = f"loss_args: {key} of shape {list(weight.shape)}"
        if weight.ndim == 1:
            got = f"loss_args: {format_count(len(weight), 'number')} in {key}"
        if has_classes:
            if weight.shape == (n_classes,):
                continue
            needed = f"{n_classes}, one for each class of the model's output"
            raise DataError(source, got, needed)
        try:
            loss.fit(key, weight, out).expand_as(out)
        except RuntimeError:
            shape = list(out.shape[1:])
            needed = f"one for each of the model's outputs, whose shape is {shape}"
            raise DataError(source, got, needed) from None


def _check_own_loss(source: str, loss: OwnLoss, returned: Any, y: Nested) -> None:
    """Call a function of the user's on a few samples, and look at what it returns."""
    try:
        value = loss.mean(returned, y)
    except DataError as error:
        raise DataError(source, error.got, error.needed) from None
    except Exception as error:  # user code raises any exception
        got = f"an error from the loss {loss.name}: {user_code.describe(error)}"
        needed = f"a loss of {_describe_call(returned, y)}"
        raise DataError(source, got, needed) from None
    problem = _value_problem(value)
    if problem is None and not torch.isfinite(value).all():
        problem = "NaN or infinity", "a finite number, of a model that has not trained"
    if problem is not None:
        got, needed = problem
        raise DataError(source, f"{got} from the loss {loss.name}", needed)


def _describe_call(returned: Any, y: Nested) -> str:
    output = (
        f"an output of {describe(returned)}"
        if isinstance(returned, torch.Tensor)
        else f"what the model returns, a {type(returned).__name__},"
    )
    return f"{output} and targets of {describe(y)}"


def _value_problem(value: Any) -> tuple[str, str] | None:
    needed = "one number, the mean over the batch, as a tensor: loss.mean()"
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}", needed
    if value.numel() != 1:
        return f"a tensor of shape {list(value.shape)}", needed
    if not value.is_floating_point():
        return f"a tensor of {str(value.dtype).removeprefix('torch.')}", needed
    return None


def learn_shift(loss: Loss, module: nn.Module, samples: TorchSamples) -> None:
    """See whether a model's own loss skips first labels, in an actor begun anew.

    The module is in evaluation mode.
    """
    if isinstance(loss, ModelLoss) and loss.skips_first is None and len(samples):
        loss.skips_first = _skips_first(module, samples.extremes())


def measure(
    sums: Any, loss: Loss, module: nn.Module, batch: tuple[Nested, Nested, Any]
) -> None:
    """Add what a module returned for a batch to sums for metrics.

    Where a model's own loss compares each output with the next label, as causal models
    do, so do metrics.

    batch : inputs, targets, and what the module returned for them.
    """
    x, y, returned = batch
    is_own = isinstance(loss, ModelLoss)
    out = output_beside_loss(returned) if is_own else main_output(returned, loss.entry)
    if isinstance(loss, ModelLoss) and loss.skips_first and out.ndim > 2:
        out, y = out[:, :-1], y[:, 1:]
    sums.read(
        sums.Output(
            loss.use,
            out,
            y,
            is_own or has_classes_last(returned),
            lambda: compute_random_outputs(module, x, loss.entry),
        )
    )


def _skips_first(module: nn.Module, few: TensorSamples) -> bool:
    """Whether the model's own loss leaves out the first label of each sequence.

    Causal models shift labels by one: the first one alone is then no label at all.
    """
    y = few.y
    if not isinstance(y, torch.Tensor) or y.is_floating_point() or y.ndim != 2:
        return False
    labels = torch.full_like(y, loss_domains.IGNORED)
    labels[:, 0] = y[:, 0]
    try:
        with torch.no_grad():
            loss = own_loss(call_module(module, map_arrays(torch.clone, few.x), labels))
    except Exception:  # of models that have no use for -100
        return False
    return y.shape[1] > 1 and not (bool(loss.isfinite()) and float(loss) != 0.0)


def run(module: nn.Module, source: str, x: Nested, labels: Nested = None) -> Any:
    """What the module returns for a few samples (n, ...), in evaluation mode.

    Raises
    ------
    DataError
        If it does not take them.
    """
    module.eval()
    try:
        with torch.no_grad(), bounded_embeddings(module):
            # it may write into its input
            return call_module(module, map_arrays(torch.clone, x), labels)
    except Exception as error:  # user code raises any exception
        got = describe_samples(x)
        if labels is not None:
            got += f" and labels={describe(labels)} (loss: model)"
        needed = f"what the model takes: {user_code.describe(error)}"
        raise DataError(source, got, needed + _unknown_names(module, x)) from None


def _unknown_names(module: nn.Module, x: Nested) -> str:
    """Which names of inputs the module's forward does not have, and those that it has.

    With ``**kwargs`` it is given them all the same.
    """
    if not isinstance(x, Mapping):
        return ""
    parameters = inspect.signature(module.forward).parameters.values()
    names = [
        one.name
        for one in parameters
        if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    unknown = [repr(name) for name in x if name not in names]
    if not unknown or not names:
        return ""
    more = ", ..." * (len(names) > N_NAMES)
    listed = ", ".join(names[:N_NAMES]) + more
    return f"; its forward has no {', '.join(unknown)}, but {listed}"


def describe_samples(x: Nested) -> str:
    """What errors call samples: their shapes and dtypes."""
    if isinstance(x, torch.Tensor):
        dtype = str(x.dtype).removeprefix("torch.")
        return f"samples of shape {list(x.shape[1:])} ({dtype})"
    return f"samples of {describe(x)}"


def _require_output(returned: Any, loss: Loss, source: str, x: Nested) -> torch.Tensor:
    """The output of what a module returned; DataError if it is not one a sample."""
    out = main_output(returned, loss.entry, source)
    if not out.ndim or len(out) != length(x):
        n_samples = format_count(length(x), "sample")
        got = f"model output of shape {list(out.shape)} for {n_samples}"
        raise DataError(source, got, "an output for each sample, along the first axis")
    return out


def compute_output(
    loss: Loss, module: nn.Module, source: str, x: Nested
) -> torch.Tensor:
    """The output that counts for a few samples, whose targets are not known.

    Where they have not told the axis of classes before, the inputs' shape does: what is
    as long as they are is no class.

    Raises
    ------
    DataError
        If the module does not take them, or gives no such output.
    """
    returned = run(module, source, x)
    out = _require_output(returned, loss, source, x)
    if isinstance(loss, NamedLoss) and not loss.is_axis_clear and out.ndim > 2:
        order = (-1, 1) if has_classes_last(returned) else (1, -1)
        shape = tuple(out.shape[1:])
        inputs = [tuple(one.shape[1:]) for one in arrays(x).values()]
        fitting = [a for a in order if _lie_along(shape, a, inputs)]
        loss.use = loss.use._replace(class_axis=[*fitting, *order][0])
    return out


def _lie_along(
    shape: tuple[int, ...], axis: int, inputs: list[tuple[int, ...]]
) -> bool:
    """Whether without the axis of classes an output is shaped as some inputs are."""
    positions = loss_domains.label_shape(shape, axis)
    n = len(positions)
    return any(positions in (one[:n], one[-n:]) for one in inputs)


def compute_random_outputs(
    module: nn.Module, x: Nested, entry: str | int | None
) -> list[torch.Tensor]:
    """The output under large random weights: see `large_random_tensors`."""
    random = loss_domains.large_random_tensors(dict(module.named_parameters()))
    try:
        with torch.no_grad():
            args, kwargs = arguments(map_arrays(torch.clone, x))
            returned = torch.func.functional_call(module, random, args, kwargs)
            return [main_output(returned, entry)]
    except Exception:  # of modules that are compiled, or use their weights otherwise
        return []


def _find_classes(
    loss: NamedLoss, module: nn.Module, x: Nested, y: torch.Tensor
) -> tuple[int, ...] | None:
    """Shape of one sample's output; the loss is told where its classes are.

    Nothing if there is no such output, which `check` tells.
    """
    if not length(x):
        return None
    few = take(x, slice(1))
    try:
        returned = run(module, "", few)
        out = _require_output(returned, loss, "", few)
    except DataError:
        return None
    shape = tuple(out.shape[1:])
    loss.has_named_output = has_classes_last(returned)
    if not loss.has_own_axis and len(shape) > 1:
        order = (-1, 1) if loss.has_named_output else (1, -1)
        axes = loss_domains.find_class_axes(y, shape, order)
        loss.use = loss.use._replace(class_axis=axes[0] if axes else 1)
        loss.is_axis_clear = bool(axes)
    if not -out.ndim < loss.use.class_axis < out.ndim:
        return None
    return shape
