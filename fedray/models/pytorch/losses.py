"""PyTorch losses: torch.nn.functional by name, the model's own, a function of yours.

A loss takes what the module returned, and the targets; it gives the mean over a batch,
and of how much it is the mean, so that batches and parties can be averaged.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fedray import user_code
from fedray.config import describe_unknown
from fedray.errors import ConfigError
from fedray.models.loss_domains import (
    ANYTHING,
    IGNORED,
    NOT_USABLE,
    PYTORCH,
    LossUse,
)
from fedray.models.loss_names import function_name
from fedray.models.own_loss import make_loss
from fedray.models.pytorch import loss_args
from fedray.models.pytorch.outputs import main_output, own_loss
from fedray.nested import Nested
from fedray.user_code import Source

LOSSES = tuple(PYTORCH)
MODEL = "model"  # as `loss`: the model's own
OTHERS = f"{MODEL} (the model's own), or file.py:function"
# whose mean is weighted by `weight`, and counts no label of `ignore_index`
COUNTING = ("cross_entropy", "nll_loss")


class NamedLoss:
    """A loss of torch.nn.functional, with `loss_args`.

    use : its domain, and where in the output the classes are.
    entry : of what the module returns; None: the one that counts.
    takes_labels : whether the module is called with the targets.
    has_each : whether it gives a loss for each sample of a batch, not a mean alone.
    has_own_axis : whether the config names the axis of classes.
    is_axis_clear : whether targets have told it, or the config.
    has_named_output : whether the output is an entry of a dict or object.
    """

    takes_labels = False
    has_each = True

    def __init__(
        self, name: str, args: Mapping[str, Any], is_default: bool, device: str
    ):
        self.name = function_name(name)
        self.function = getattr(torch.nn.functional, self.name)
        domain = PYTORCH[self.name]
        loss_args.check(name, args, loss_args.names_of(self.function, domain))
        self.args = loss_args.to_tensors(args, device)
        self.entry: str | int | None = self.args.pop(loss_args.OUTPUT, None)
        axis = self.args.pop(loss_args.CLASS_AXIS, None)
        self.has_own_axis = axis is not None
        self.is_axis_clear = self.has_own_axis
        self.has_named_output = False  # of a dict or object
        self.use = LossUse(
            self.name, domain, PYTORCH, axis or 1, is_default,
            self.args.get("ignore_index"),
        )  # fmt: skip
        counts = {"weight", "ignore_index"} & self.args.keys()
        self._is_counting = self.name in COUNTING and bool(counts)

    @property
    def unstackable(self) -> str | None:
        """Why parties cannot be trained together with it; None if they can."""
        if self._is_counting:
            return "loss_args: each party's mean is over labels, by their weights"
        return None

    def mean(self, returned: Any, y: torch.Tensor) -> torch.Tensor:
        """Mean loss of what the module returned for a batch."""
        if not isinstance(returned, torch.Tensor):
            returned = main_output(returned, self.entry)
        out, y = self._align(returned, y)
        args = self._args_for(out) if self.args else {}
        if not self._is_counting or y.is_floating_point():
            return self.function(out, y, reduction="mean", **args)
        total = self.function(out, y, reduction="sum", **args)
        return total / self._label_weights(y).sum().to(total)

    def each(self, out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Losses of outputs (N, ...), not averaged; N times as many as a sample has."""
        out, y = self._align(out, y)
        return self.function(out, y, reduction="none", **self._args_for(out))

    def by_sample(self, returned: Any, y: torch.Tensor) -> torch.Tensor:
        """The loss of each sample (N,): the mean over its outputs or labels.

        Labels that are ignored are left out. Class weights scale it: they do not
        cancel, as they would in the weighted mean of a single label.
        """
        n_samples = len(y)
        each = self.each(main_output(returned, self.entry), y).reshape(n_samples, -1)
        if self.name not in COUNTING or y.is_floating_point():
            return each.mean(1)
        ignored = IGNORED if self.use.ignored is None else self.use.ignored
        n_labels = (y != ignored).reshape(n_samples, -1).sum(1)
        return each.sum(1) / n_labels.clamp(min=1)

    def weigh_each(self, y: torch.Tensor) -> torch.Tensor | None:
        """Weights of `each`, where labels count; None: every sample counts alike."""
        if not self._is_counting or y.is_floating_point():
            return None
        return self._label_weights(y)

    def weigh(self, y: torch.Tensor) -> torch.Tensor | None:
        """The sum of weights that a mean over these targets has; None: their number."""
        if not self._is_counting or y.is_floating_point():
            return None
        return self._label_weights(y).sum()

    def _label_weights(self, y: torch.Tensor) -> torch.Tensor:
        """Weight of each label; of those that count for nothing 0."""
        ignored = self.use.ignored
        counts = y == y if ignored is None else y != ignored
        weight = self.args.get("weight")
        if weight is None:
            return counts.double()
        return weight[torch.where(counts, y, 0)] * counts

    def _align(
        self, out: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and targets in the shapes that torch takes."""
        if not self.use.domain.has_classes:
            return out, y.reshape(out.shape)  # (N,) against (N, 1) would broadcast
        axis = self.use.class_axis
        if axis in (1, 1 - out.ndim):
            return out, y
        out = out.movedim(axis, -1)
        if y.is_floating_point():
            return out.flatten(0, -2), y.movedim(axis, -1).flatten(0, -2)
        return out.flatten(0, -2), y.flatten()

    def _args_for(self, out: torch.Tensor) -> dict[str, Any]:
        """`loss_args` with weights as this output needs them."""
        return {
            key: self.fit(key, value, out) if isinstance(value, torch.Tensor) else value
            for key, value in self.args.items()
        }

    def fit(self, key: str, weight: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Weights in the output's dtype, one for each of its classes or channels."""
        weight = weight.to(out)
        if self.use.domain.has_classes:
            return weight
        if weight.ndim == 1 and out.ndim > 2:
            weight = weight.reshape(-1, *[1] * (out.ndim - 2))
        return weight.expand_as(out) if key == "weight" else weight


class ModelLoss:
    """The loss that the module itself computes, called with its targets as `labels`."""

    takes_labels = True
    has_each = False
    entry = None
    unstackable = "loss: model is a mean over a batch"

    def __init__(self, args: Mapping[str, Any]):
        if args:
            names = ", ".join(args)
            line = f"loss_args: {names} cannot be given to loss: model, whose loss "
            raise ConfigError([line + "is the model's own: build the model with it"])
        self.use = LossUse(MODEL, ANYTHING, PYTORCH)
        # as causal models do, which shift labels; None: not known yet
        self.skips_first: bool | None = None

    def mean(self, returned: Any, y: Nested) -> torch.Tensor:
        """The loss that the module returned."""
        return own_loss(returned)

    def by_sample(self, returned: Any, y: Nested) -> torch.Tensor:
        """The loss (1,) of what the module returned for a single sample."""
        return self.mean(returned, y).reshape(1)

    def weigh(self, y: Nested) -> torch.Tensor | None:
        """Number of labels other than -100; None where there are none to count."""
        if not isinstance(y, torch.Tensor) or y.is_floating_point():
            return None
        labels = y[:, 1:] if self.skips_first else y
        return (labels != IGNORED).sum().double()


class OwnLoss:
    """A function of the user's, `loss(output, target)`, or a class that makes one.

    It is called with what the module returned, or, where it does not take that, with
    the output that counts of it.
    """

    takes_labels = False
    has_each = False
    unstackable = "a loss of your own is a mean over a batch"

    def __init__(self, source: Source, args: Mapping[str, Any], device: str):
        self.name = str(source)
        args = dict(args)
        self.entry: str | int | None = args.pop(loss_args.OUTPUT, None)
        self.use = LossUse(self.name, ANYTHING, PYTORCH)
        self.function = make_loss(source, args)
        if isinstance(self.function, nn.Module):
            if any(p.requires_grad for p in self.function.parameters()):
                line = f"loss {source} has parameters to train: put them into the model"
                raise ConfigError([line])
            self.function.to(device)
        self._takes_whole: bool | None = None

    def mean(self, returned: Any, y: Nested) -> Any:
        """What the function returns; `fitting.check` says what is wrong with it."""
        if isinstance(returned, torch.Tensor):
            return self.function(returned, y)
        if self.entry is None and self._takes_whole is None:
            self._takes_whole = self._can_take(returned, y)
        if self.entry is None and self._takes_whole:
            return self.function(returned, y)
        return self.function(main_output(returned, self.entry), y)

    def by_sample(self, returned: Any, y: Nested) -> torch.Tensor:
        """The loss (1,) of what the module returned for a single sample."""
        return self.mean(returned, y).reshape(1)

    def weigh(self, y: Nested) -> None:
        """Nothing: every sample counts alike."""

    def _can_take(self, returned: Any, y: Nested) -> bool:
        """Whether it takes all that the module returned, not one output alone."""
        try:
            self.function(returned, y)
        except (TypeError, AttributeError):
            return False
        except Exception:  # of its own: it will be raised again, and described
            return True
        return True


Loss = NamedLoss | ModelLoss | OwnLoss


def make(
    name: str,
    args: Mapping[str, Any],
    code: Source | None = None,
    is_default: bool = False,
    device: str = "cpu",
) -> Loss:
    """Make the loss of a config.

    Parameters
    ----------
    name : `loss`; class names such as ``torch.nn.MSELoss`` are read as functions.
    args : `loss_args`.
    code : of a loss that is the user's.
    is_default : whether the config does not name it.

    Raises
    ------
    ConfigError
        If there is no such loss, or it does not take `args`.
    """
    if code is not None:
        return OwnLoss(code, args, device)
    if name == MODEL:
        return ModelLoss(args)
    last = function_name(name)
    if last in NOT_USABLE:
        choices = ", ".join((*LOSSES, OTHERS))
        raise ConfigError(
            [f"loss {name} cannot be used: {NOT_USABLE[last]}; choose from {choices}"]
        )
    if last not in LOSSES:
        message = describe_unknown("loss", name, LOSSES)
        raise ConfigError([f"{message}, or {OTHERS}"])
    return NamedLoss(name, args, is_default, device)


def check_names(name: str, args: Mapping[str, Any]) -> None:
    """Raise ConfigError for an unknown loss or argument; code of the user's is read."""
    if user_code.is_source(name):
        user_code.read(name, "loss")
    else:
        make(name, args)
