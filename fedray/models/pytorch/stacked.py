"""Many small parties trained together: one call works for a whole stack of them.

Every party takes its own steps, with its own batches in its own order: it gets what
training alone gives, within float error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from fedray.config import FederationConfig
from fedray.models.base import PartySlice, log_unstacked
from fedray.models.pytorch.batched_module import Twin
from fedray.models.pytorch.optimizers import make_optimizer, step
from fedray.weights import Weights

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
LESS = 3  # on a CPU for models whose calls cost so much less than others'
CONVOLUTIONS = (nn.modules.conv._ConvNd,)


class Stack:
    """Room for a stack of parties, kept for the actor's life: fresh pages are slow.

    Parameters
    ----------
    module : nn.Module
        In training mode. Holds what every party starts from, and is not written to.
    loss : callable
        (outputs (N, ...), targets (N, ...)) -> (N, ...) losses, not averaged.
    in_one_batch : bool
        As `Twin` takes it.
    """

    def __init__(
        self,
        module: nn.Module,
        config: FederationConfig,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        in_one_batch: bool,
    ):
        self.module, self.config, self.loss = module, config, loss
        self.twin = Twin(module, in_one_batch)
        self.starts = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._room: dict[str, torch.Tensor] = {}  # by name of a parameter: (S, *shape)
        self._sample_bytes, self._told = 0, False
        convolves = any(isinstance(m, CONVOLUTIONS) for m in module.modules())
        self.cautious = convolves and config.stacked == "auto"

    def cut(
        self, parts: Sequence[PartySlice], x: torch.Tensor
    ) -> list[Sequence[PartySlice]]:
        """Cut parts into even stacks by config, shapes and counts, and nothing else.

        No stacks if convolutions would be slower that way: on a CPU they are once
        their outputs outgrow its cache.
        """
        size = self._n_cached(max(len(part.rows) for part in parts), x)
        if self.cautious and x.device.type == "cpu" and size < MIN_STACK:
            if not self._told:
                log_unstacked(
                    self.config, "convolutions this large are slower stacked on a CPU"
                )
            self._told = True
            return []
        n_stacks = -(-len(parts) // max(MIN_STACK, min(size, MAX_STACK)))
        ends = [len(parts) * i // n_stacks for i in range(n_stacks + 1)]
        return [parts[start:end] for start, end in pairwise(ends)]

    def size_up(self, x: torch.Tensor) -> None:
        """Learn once what one sample takes, and which masks dropout draws."""
        if not self._sample_bytes:  # a sample, every layer's output and its gradient
            self._sample_bytes = x[0].nbytes + 2 * self.twin.size_up(x)

    def _n_cached(self, longest: int, x: torch.Tensor) -> int:
        """How many parties of up to `longest` samples train in the cache."""
        self.size_up(x)
        n_copies = 2 + ELEMENTWISE[self.config.optimizer.rpartition(".")[2]]
        party_bytes = (
            n_copies * sum(p.nbytes for p in self.starts.values())
            + min(longest, self.config.batch_size) * self._sample_bytes
            + longest * self.config.epochs * 8
        )
        room = STACK_BYTES.get(x.device.type, STACK_BYTES["cpu"])
        if self.twin.in_one_batch and x.device.type == "cpu":
            room //= LESS
        return room // party_bytes

    def train(
        self, parts: Sequence[PartySlice], x: torch.Tensor, y: torch.Tensor
    ) -> tuple[np.ndarray, Weights]:
        """Train one stack: losses (S,), arrays (S, *shape) mostly views of this room.

        What training does not move is a broadcast view: one for all.
        """
        epochs, batch_size = self.config.epochs, self.config.batch_size
        plan = planned(parts, epochs, batch_size, bool(self.twin.drops))
        running = _Running(self, [parts[i].seed for i in np.argsort(plan.slots)])
        running.begin(parts, plan.slots)
        losses = np.zeros(len(parts))
        for places, counts, shares in zip(
            plan.places, plan.counts, plan.shares, strict=True
        ):
            n, width = np.count_nonzero(counts), counts.max()
            running.keep(n)
            ends = running.step(places[:n, :width], counts[:n], (x, y))
            if shares.any():
                losses[:n] += ends.cpu().numpy() * shares[:n]
        return losses[plan.slots], self._arrays(plan.slots)

    def parameters(self, size: int) -> dict[str, nn.Parameter]:
        """As many copies of the start as there are parties, in this room."""
        parameters = {}
        for name, start in self.starts.items():
            room = self._room.get(name)
            if room is None or len(room) < size:
                room = start.new_empty(size, *start.shape)
                self._room[name] = room
            room = room.detach()[:size]
            parameters[name] = nn.Parameter(room.copy_(start.detach()))
        return parameters

    def _arrays(self, slots: np.ndarray) -> Weights:
        """All of state_dict, each part's own numbers in the order of the parts."""
        names = {id(start): name for name, start in self.starts.items()}
        in_order = (slots == np.arange(len(slots))).all()
        arrays = {}
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            own = names.get(id(tensor))
            if own is None:
                same = tensor.detach().cpu().numpy()
                arrays[name] = np.broadcast_to(same, (len(slots), *same.shape))
            else:
                array = self._room[own].cpu().numpy()[: len(slots)]
                arrays[name] = array if in_order else array[slots]
        return arrays


class _Running:
    """A stack in training: the parameters of those not done, and their optimizer."""

    def __init__(self, stack: Stack, seeds: list[int]):
        self.stack = stack
        self.parameters = stack.parameters(len(seeds))
        self.optimizer = make_optimizer(stack.config, self.parameters.values())
        seeds = seeds if stack.twin.drops else []
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def begin(self, parts: Sequence[PartySlice], slots: np.ndarray) -> None:
        """Overwrite the start of parts that have one of their own."""
        for part, slot in zip(parts, slots.tolist(), strict=True):
            for name, parameter in self.parameters.items() if part.start else ():
                parameter.detach()[slot].copy_(torch.from_numpy(part.start[name]))

    def keep(self, n: int) -> None:
        """Go on with the first `n` parties; the others' numbers stay as they are."""
        group = self.optimizer.param_groups[0]["params"]
        if n == len(group[0]):
            return
        for i, (name, parameter) in enumerate(self.parameters.items()):
            state = self.optimizer.state.pop(parameter, {})
            group[i] = self.parameters[name] = nn.Parameter(parameter.detach()[:n])
            self.optimizer.state[group[i]] = {
                key: value[:n] if _alike(value, parameter) else value
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
        given = x.index_select(0, flat).reshape(*places.shape, *x.shape[1:])
        masks = self.stack.twin.masks(self.generators, counts.tolist(), x.device)
        self.optimizer.zero_grad(set_to_none=True)
        out = self.stack.twin(self.parameters, given, masks)
        each = self.stack.loss(out.flatten(0, 1), y.index_select(0, flat))
        each = each.reshape(*places.shape, -1).mean(2)
        real = (np.arange(places.shape[1]) < counts[:, None]) / counts[:, None]
        real = torch.from_numpy(real).to(each)
        losses = (each * real).sum(1)
        losses.sum().backward()  # no party sees another
        mu = self.stack.config.proximal_mu
        for name, parameter in self.parameters.items():
            if mu and parameter.grad is not None:
                moved = parameter.detach() - self.stack.starts[name].detach()
                parameter.grad.add_(moved, alpha=mu)
        step(self.optimizer)
        return losses.detach()


def _alike(value: object, parameter: nn.Parameter) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == parameter.shape


@dataclass(frozen=True)
class Plan:
    """Which samples each party of a stack takes in each of its steps.

    The parties stand in the order of their sizes, largest first: those that still train
    are the first ones of every array, and those that are done fall off its end.

    slots : (S,) where every part that was handed in stands.
    places : (T, S, B) in x and y; a short batch is filled up with its last sample.
    counts : (T, S) real samples of a batch; 0 once a party is done.
    shares : (T, S) those of a party's last pass over its samples, elsewhere 0.
    """

    slots: np.ndarray
    places: np.ndarray
    counts: np.ndarray
    shares: np.ndarray


def planned(
    parts: Sequence[PartySlice], epochs: int, batch_size: int, masked: bool
) -> Plan:
    """Draw every party's order of samples from its own seed, like training alone.

    Parameters
    ----------
    masked : bool
        Whether masks are drawn for the samples of a batch. If not, their order inside
        it changes nothing but rounding, and parties of one batch need no order.
    """
    sizes = np.array([len(part.rows) for part in parts])
    standing = np.argsort(-sizes, kind="stable")
    sizes = sizes[standing]
    passes = np.maximum(1, -(-sizes // batch_size))  # steps of one pass
    step = np.arange(epochs * passes[0])[:, None]
    counts = np.minimum(sizes - step % passes * batch_size, batch_size)
    counts[step >= epochs * passes] = 0
    shares = np.where(step >= (epochs - 1) * passes, counts / sizes, 0)
    width = min(batch_size, int(sizes[0]))
    drawn = np.empty((len(parts), epochs, int(passes[0]) * width), np.int64)
    for own, part in zip(drawn, standing.tolist(), strict=True):
        rows, seed = parts[part].rows, parts[part].seed
        if masked or len(rows) > batch_size:
            _draw(own, rows, seed)
        else:  # seeding takes longer than a small model's step
            own[:, : len(rows)] = rows
        own[:, len(rows) :] = own[:, len(rows) - 1 : len(rows)]
    batches = drawn.reshape(len(parts), epochs, -1, width)
    number, within = np.divmod(step, passes)
    own = np.arange(len(parts))
    places = batches[own, np.minimum(number, epochs - 1), within]
    return Plan(np.argsort(standing), places, counts, shares)


def _draw(orders: np.ndarray, rows: np.ndarray, seed: int) -> None:
    draw = np.random.default_rng(seed)
    for order in orders:
        order[: len(rows)] = rows[draw.permutation(len(rows))]
