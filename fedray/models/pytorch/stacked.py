"""Stacked training: each call trains one batch of many small parties at once.

Every party takes its own steps on its own batches in its own order, and gets what
training alone gives, within float error. Whether a model's parties can train so is
decided from its layers and size, then by a comparison.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import nn

from fedray import user_code
from fedray.config import RunConfig
from fedray.models.base import PartySlice, SingleModel, log_unstacked
from fedray.models.pytorch.batch_schedule import party_rates, schedule_batches
from fedray.models.pytorch.batched_module import (
    BatchedModule,
    GradientFactors,
    is_linear,
)
from fedray.models.pytorch.optimizers import is_plain_sgd, make_optimizer, step
from fedray.models.rate_sum import RateCounter
from fedray.models.torch_samples import TensorSamples, TorchSamples
from fedray.models.torch_state import OutsideState, global_states
from fedray.models.torch_steps import clip_each
from fedray.weights import Weights, row

ELEMENTWISE = {  # optimizers that move every number by itself: tensors they remember
    "SGD": 1,
    "Adagrad": 1,
    "Adadelta": 2,
    "Adam": 2,
    "AdamW": 2,
    "Adamax": 2,
    "NAdam": 2,
    "RAdam": 2,
    "RMSprop": 3,
}
MAX_STACK = 256  # parties; with more a call costs no less per party
MIN_STACK = 8  # with fewer a call costs more than it saves
STACK_BYTES = {"cpu": 48 << 20, "cuda": 1 << 30}  # what stays in a processor's cache
ONE_BATCH_DIVISOR = 3  # on a CPU for models whose calls cost so much less than others'
CONVOLUTIONS = (nn.modules.conv._ConvNd,)
MAX_MODEL_BYTES = 32 << 20  # past this not even one party's numbers stay in a cache
TOLERANCE = 1e-4  # of a tensor's largest change

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def base_name(config: RunConfig) -> str:
    """Name of the config's optimizer without its module: Adam of ``optim.Adam``."""
    return config.optimizer.rpartition(".")[2]


class Stack:
    """Buffers for a stack of parties, kept for the actor's life: new pages are slow.

    Parameters
    ----------
    module : nn.Module
        In training mode. Holds what every party starts from, and is not written to.
    loss : callable
        (outputs (N, ...), targets (N, ...)) -> (N, ...) losses, not averaged.
    in_one_batch : bool
        As `BatchedModule` takes it.
    """

    def __init__(
        self,
        module: nn.Module,
        config: RunConfig,
        loss: LossFunction,
        in_one_batch: bool,
    ):
        self.module, self.config, self.loss = module, config, loss
        self.personal = frozenset[str]()  # parameters that proximal_mu does not pull
        self.batched = BatchedModule(module, in_one_batch)
        self.starts = {n: p for n, p in module.named_parameters() if p.requires_grad}
        # whether a step needs no gradients, only their factors
        self.is_factored = (
            in_one_batch and is_plain_sgd(config) and config.gradient_clip_norm is None
        )
        self._buffers: dict[str, torch.Tensor] = {}  # by parameter name: (S, *shape)
        self._sample_bytes = 0
        self._has_logged_unstacked = False
        convolves = any(isinstance(m, CONVOLUTIONS) for m in module.modules())
        self.may_refuse = convolves and config.stacked == "auto"

    def split(
        self, parts: Sequence[PartySlice], x: torch.Tensor
    ) -> list[Sequence[PartySlice]]:
        """Split parties into even stacks by config, shapes and counts, nothing else.

        No stacks if convolutions would be slower that way: on a CPU they are once
        their outputs outgrow its cache.
        """
        size = self._cached_parties(max(len(part.rows) for part in parts), x)
        if self.may_refuse and x.device.type == "cpu" and size < MIN_STACK:
            if not self._has_logged_unstacked:
                log_unstacked(
                    self.config, "convolutions this large are slower stacked on a CPU"
                )
            self._has_logged_unstacked = True
            return []
        n_stacks = -(-len(parts) // max(MIN_STACK, min(size, MAX_STACK)))
        ends = [len(parts) * i // n_stacks for i in range(n_stacks + 1)]
        return [parts[start:end] for start, end in pairwise(ends)]

    def measure(self, x: torch.Tensor) -> None:
        """Measure once a sample's bytes in training, and record dropout's masks."""
        if not self._sample_bytes:  # a sample, every layer's output and its gradient
            self._sample_bytes = x[0].nbytes + 2 * self.batched.measure(x)

    def _cached_parties(self, longest: int, x: torch.Tensor) -> int:
        """How many parties of up to `longest` samples train within the cache."""
        self.measure(x)
        n_copies = 2 + ELEMENTWISE[base_name(self.config)]
        config, n_bytes = self.config, sum(p.nbytes for p in self.starts.values())
        width = min(longest, config.batch_size)
        n_places = longest * config.epochs
        if config.local_steps is not None:
            n_places = width * config.local_steps
        party_bytes = n_copies * n_bytes + width * self._sample_bytes + n_places * 8
        n_bytes = STACK_BYTES.get(x.device.type, STACK_BYTES["cpu"])
        if self.batched.in_one_batch and x.device.type == "cpu":
            n_bytes //= ONE_BATCH_DIVISOR
        return n_bytes // party_bytes

    def train(
        self, parts: Sequence[PartySlice], x: torch.Tensor, y: torch.Tensor
    ) -> tuple[np.ndarray, Weights]:
        """Train one stack: losses (S,), arrays (S, *shape), views of the buffers.

        What training does not move is a broadcast view: one for all.
        """
        schedule = schedule_batches(
            parts, self.config, has_masks=bool(self.batched.dropouts)
        )
        in_order = np.argsort(schedule.positions)
        run = _StackRun(self, [parts[i].seed for i in in_order])
        run.load_starts(parts, schedule.positions)
        run.mu = parts[0].pull_of(self.config)
        run.follow([parts[i] for i in in_order])
        losses = np.zeros(len(parts))
        rates = party_rates(parts, self.config, schedule.counts, in_order)
        for i, (places, counts, shares) in enumerate(
            zip(schedule.places, schedule.counts, schedule.shares, strict=True)
        ):
            n_training, width = int(np.count_nonzero(counts)), counts.max()
            run.shrink(n_training)
            if rates:
                run.rates = np.array([at(i) for at in rates[:n_training]])
            batch_losses = run.step(
                places[:n_training, :width], counts[:n_training], (x, y)
            )
            if shares.any():
                losses[:n_training] += batch_losses.cpu().numpy() * shares[:n_training]
        run.write_rates([parts[i] for i in in_order])
        return losses[schedule.positions], self._arrays(schedule.positions)

    def parameters(self, size: int) -> dict[str, nn.Parameter]:
        """As many copies of the start as there are parties, in the buffers."""
        parameters = {}
        for name, start in self.starts.items():
            buffer = self.buffer(name, start.detach().expand(size, *start.shape))
            parameters[name] = nn.Parameter(buffer.copy_(start.detach()))
        return parameters

    def buffer(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """A tensor of the form of `like` (S, *shape), its numbers of whatever was."""
        buffer, size = self._buffers.get(name), len(like)
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[name] = like.new_empty(like.shape)
        return buffer.detach()[:size]

    def _arrays(self, positions: np.ndarray) -> Weights:
        """All of state_dict, each party's own numbers in the order of the parts."""
        names = {id(start): name for name, start in self.starts.items()}
        is_in_order = (positions == np.arange(len(positions))).all()
        arrays = {}
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            own = names.get(id(tensor))
            if own is None:
                shared = tensor.detach().cpu().numpy()
                arrays[name] = np.broadcast_to(shared, (len(positions), *shared.shape))
            else:
                array = self._buffers[own].cpu().numpy()[: len(positions)]
                arrays[name] = array if is_in_order else array[positions]
        return arrays


class _StackRun:
    """One training of a stack: parameters of unfinished parties, their optimizer."""

    def __init__(self, stack: Stack, seeds: list[int]):
        self.stack = stack
        self.parameters = stack.parameters(len(seeds))
        self.optimizer = make_optimizer(stack.config, self.parameters.values())
        # (S,) of the next step; None: the config's
        self.rates: np.ndarray | None = None
        self.mu = stack.config.proximal_mu
        self.counter: RateCounter | None = None
        self.corrections: dict[str, torch.Tensor] = {}  # (S, *shape)
        mask_seeds = seeds if stack.batched.dropouts else []
        self.generators = [torch.Generator().manual_seed(seed) for seed in mask_seeds]

    def load_starts(self, parts: Sequence[PartySlice], positions: np.ndarray) -> None:
        """Overwrite the start of parties that train on from weights of their own."""
        for part, position in zip(parts, positions.tolist(), strict=True):
            start = part.start or {}
            for name in self.parameters.keys() & start.keys():
                own = torch.from_numpy(start[name])
                self.parameters[name].detach()[position].copy_(own)

    def follow(self, parts: Sequence[PartySlice]) -> None:
        """Prepare what a fusion rule asks of the steps; parts in the stack's order."""
        starts = [part.rates.total for part in parts if part.rates is not None]
        if starts:
            self.counter = RateCounter(self.stack.config, np.array(starts))
        for i, part in enumerate(parts):
            if part.correction is not None:
                for name, array in part.correction().items():
                    self._corrections_of(name)[i].copy_(torch.from_numpy(array))

    def _corrections_of(self, name: str) -> torch.Tensor:
        if name not in self.corrections:
            buffer = self.stack.buffer(f"{name}, corrections", self.parameters[name])
            self.corrections[name] = buffer
        return self.corrections[name]

    def write_rates(self, parts: Sequence[PartySlice]) -> None:
        """Give each part the sum of its steps' rates."""
        for i, part in enumerate(parts):
            if part.rates is not None and self.counter is not None:
                part.rates.total = abs(float(self.counter.totals[i]))

    def shrink(self, n_training: int) -> None:
        """Train on the first `n_training` parties; the others' numbers stay."""
        group = self.optimizer.param_groups[0]["params"]
        if n_training == len(group[0]):
            return
        for i, (name, parameter) in enumerate(self.parameters.items()):
            state = self.optimizer.state.pop(parameter, {})
            shorter = nn.Parameter(parameter.detach()[:n_training])
            group[i] = self.parameters[name] = shorter
            self.optimizer.state[shorter] = {
                key: value[:n_training] if _has_shape_of(parameter, value) else value
                for key, value in state.items()
            }

    def step(
        self,
        places: np.ndarray,
        counts: np.ndarray,
        samples: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """One step of every party on places (S, B) of x and y; mean losses (S,)."""
        x, y = samples
        flat = torch.from_numpy(places.reshape(-1)).to(x.device)
        inputs = x.index_select(0, flat).reshape(*places.shape, *x.shape[1:])
        batched = self.stack.batched
        masks = batched.draw_masks(self.generators, counts.tolist(), x.device)
        self.optimizer.zero_grad(set_to_none=True)
        is_factored = self.stack.is_factored and not self.mu and not self.corrections
        factors: list[GradientFactors] | None = [] if is_factored else None
        out = batched(self.parameters, inputs, masks, factors)
        each = self.stack.loss(out.flatten(0, 1), y.index_select(0, flat))
        each = each.reshape(*places.shape, -1).mean(2)
        is_real = np.arange(places.shape[1]) < counts[:, None]  # not padding, (S, B)
        shares = torch.from_numpy(is_real / counts[:, None]).to(each)
        losses = (each * shares).sum(1)
        losses.sum().backward()  # no party's loss depends on another's parameters
        if factors is None:
            self._follow_gradients()
        else:
            self._step_by_factors(factors)
        if self.counter is not None:
            same, own = self.stack.config.learning_rate, self.rates
            self.counter.advance(same if own is None else own, len(losses))
        return losses.detach()

    def _follow_gradients(self) -> None:
        """Take the optimizer's step, by gradients as pull, clipping and rule say."""
        self._pull()
        clip_each(self.parameters, self.stack.config.gradient_clip_norm)
        self._correct()
        self._take_step()

    def _step_by_factors(self, factors: list[GradientFactors]) -> None:
        """Take a step of plain SGD without writing gradients."""
        rate, rates = self.stack.config.learning_rate, None
        if self.rates is not None:
            rate = float(self.rates.max())
            if (self.rates != rate).any():
                rate, rates = 1.0, torch.from_numpy(self.rates).view(-1, 1, 1)
        for weight, bias, x, grad in factors:
            if rates is not None:
                grad = grad * rates.to(grad)
            if weight is not None:
                weight.detach().baddbmm_(grad.mT, x, alpha=-rate)
            if bias is not None:
                bias.detach().sub_(grad.sum(1, keepdim=True), alpha=rate)
        factors.clear()  # which the graph refers to, as they do to it

    def _pull(self) -> None:
        """Add the gradient of FedProx's term."""
        mu, personal = self.mu, self.stack.personal
        for name, parameter in self.parameters.items():
            if mu and parameter.grad is not None and name not in personal:
                moved = parameter.detach() - self.stack.starts[name].detach()
                parameter.grad.add_(moved, alpha=mu)

    def _take_step(self) -> None:
        """Let every party go by its own rate.

        An optimizer has one rate for all, and each of `ELEMENTWISE` moves a number in
        proportion to it: where rates differ, parties are put back by their share.
        """
        rates = self.rates
        if rates is None:
            step(self.optimizer)
            return
        highest = float(rates.max())
        self.optimizer.param_groups[0]["lr"] = highest
        if (rates == highest).all():
            step(self.optimizer)
            return
        before = [p.detach().clone() for p in self.parameters.values()]
        step(self.optimizer)
        for start, parameter in zip(before, self.parameters.values(), strict=True):
            shares = torch.from_numpy(rates / highest).to(start)
            moved = shares.view(-1, *[1] * (start.ndim - 1))
            parameter.detach().copy_(torch.lerp(start, parameter.detach(), moved))

    def _correct(self) -> None:
        """Add each party's correction to its gradients; a missing one is zero."""
        for name, terms in self.corrections.items():
            parameter = self.parameters[name]
            own = terms[: len(parameter)]
            if parameter.grad is None:
                parameter.grad = own.clone()
            else:
                parameter.grad.add_(own)


def _has_shape_of(parameter: nn.Parameter, value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == parameter.shape


class ComparableModel(SingleModel, Protocol):
    """What the comparison needs of a PyTorch model."""

    config: RunConfig
    module: nn.Module
    trained: list[nn.Parameter]
    outside: OutsideState
    loss: Any

    def copy_for_comparison(self, dtype: torch.dtype | None) -> Self:
        """An independent copy that takes one plain SGD step and drops nothing."""


def stack_or_none(
    model: ComparableModel, weights: Weights, samples: TorchSamples
) -> Stack | None:
    """A stack for this model's parties, or None after logging why there is none."""
    config = model.config
    if config.stacked == "false":
        return None
    reason = model.loss.unstackable or _static_obstacle(config, model.module)
    if reason is not None:
        log_unstacked(config, reason)
        return None
    if not isinstance(samples, TensorSamples) or not samples.are_plain:
        log_unstacked(config, "samples or targets are no single array in memory")
        return None
    model.module.train()
    for in_one_batch in [True, False] if is_linear(model.module) else [False]:
        try:
            reason = _find_difference(model, weights, samples, in_one_batch)
            stack = Stack(model.module, config, model.loss.each, in_one_batch)
            stack.measure(samples.x)
        except Exception as error:  # user modules and vmap raise any exception
            reason = str(user_code.describe(error))
        if reason is None:
            return stack
    log_unstacked(config, reason or "")
    return None


def _static_obstacle(config: RunConfig, module: nn.Module) -> str | None:
    """Why config, layers or size alone rule stacking out; None if they do not."""
    if config.mixed_precision != "none":
        return f"mixed_precision: {config.mixed_precision} trains one party at a time"
    if config.dp_sgd is not None:
        return "dp_sgd trains one party at a time"
    if config.personal_epochs:
        return "personal_epochs trains one party at a time"
    if base_name(config) not in ELEMENTWISE:
        return f"{config.optimizer} is not known to move every number by itself"
    n_bytes = sum(tensor.nbytes for tensor in module.state_dict().values())
    if n_bytes > MAX_MODEL_BYTES:
        return f"a model of {n_bytes >> 20} MiB gains nothing and takes much memory so"
    for name, layer in module.named_modules():
        prefix = f"layer {name or '(all)'}, {type(layer).__name__},"
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            return f"{prefix} mixes the samples of a batch"
        is_random = isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0
        if config.stacked == "auto" and is_random:
            return f"{prefix} is random"
    return None


def _find_difference(
    model: ComparableModel,
    weights: Weights,
    samples: TensorSamples,
    in_one_batch: bool,
) -> str | None:
    """What stacked training of two parties gets wrong; None if nothing.

    Compared in double precision, in the model's own only if it runs in no other: in
    single precision an activation next to a kink may fall on either side of it.
    """
    places = torch.linspace(0, len(samples) - 1, 5).long().to(samples.x.device)
    x, y = samples.x[places], samples.y[places]
    try:
        copied = model.copy_for_comparison(torch.float64)
        few = TensorSamples(_to_double(x), _to_double(y))
        return _compare(copied, weights, few, in_one_batch)
    except Exception:  # such as a module that says x.float()
        copied = model.copy_for_comparison(None)
        return _compare(copied, weights, TensorSamples(x, y), in_one_batch)


def _to_double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _compare(
    model: ComparableModel,
    weights: Weights,
    samples: TensorSamples,
    in_one_batch: bool,
) -> str | None:
    """Train two parties one step singly and stacked; one has to fill up its batch."""
    parts = [PartySlice(np.array([0, 1, 2]), 1), PartySlice(np.array([3, 4]), 2)]
    single = []
    for part in parts:
        model.load(weights)
        shared = _untrained_tensors(model)
        loss = model.train(samples, part)
        arrays = {name: array.copy() for name, array in model.weights().items()}
        single.append(arrays | {"": np.array(loss)})
        changes = [n for n, (now, then) in shared.items() if not torch.equal(now, then)]
        if name := next(iter(changes), model.outside.find_change()):
            return f"{name} changes in training, which a stack would share"
    model.load(weights)
    stack = Stack(model.module, model.config, model.loss.each, in_one_batch)
    random_states = global_states()
    losses, stacked = stack.train(parts, samples.x, samples.y)
    if random_states != global_states():
        return "it draws random numbers outside of dropout layers"
    for i, expected in enumerate(single):
        actual = row(stacked, i) | {"": losses[i]}
        for name in expected:
            start = weights.get(name, np.zeros(()))
            if not _is_close(expected[name], actual[name], start):
                return f"{name or 'the loss'} comes out otherwise than trained alone"
    return None


def _untrained_tensors(
    model: ComparableModel,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Parameters and buffers that training must not move, and copies of them."""
    trained = {id(parameter) for parameter in model.trained}
    tensors: list[tuple[str, torch.Tensor]] = [
        *model.module.named_parameters(),
        *model.module.named_buffers(),
    ]
    return {
        name: (tensor, tensor.detach().clone())
        for name, tensor in tensors
        if id(tensor) not in trained
    }


def _is_close(single: np.ndarray, stacked: np.ndarray, start: np.ndarray) -> bool:
    """Whether two results of a training from `start` differ by rounding only."""
    if not np.size(single):
        return True
    change = np.abs(np.subtract(single, start, dtype=np.float64)).max()
    rounding = 1e-6 * np.abs(single).max()
    difference = np.abs(np.subtract(single, stacked, dtype=np.float64)).max()
    return bool(difference <= TOLERANCE * change + rounding)
