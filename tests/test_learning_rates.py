"""Learning rates by scheduler: equal to torch's, counted over all rounds."""

import warnings

import pytest
import torch

from fedray.config import FederationConfig, parse, rate_function

torch_schedulers = torch.optim.lr_scheduler
N = 60
CASES = [  # torch's name, its arguments, a name of ours and its arguments
    ("StepLR", {"step_size": 7, "gamma": 0.5}, "step", {}),
    ("StepLR", {"step_size": 3}, "StepLR", {}),
    ("MultiStepLR", {"milestones": [3, 17, 17, 40]}, "multistep", {}),
    ("ConstantLR", {}, "constant", {}),
    ("ConstantLR", {"factor": 0.2, "total_iters": 9}, "ConstantLR", {}),
    ("LinearLR", {}, "LinearLR", {}),
    ("LinearLR", {"start_factor": 0.01, "total_iters": 20}, "linear_lr", {}),
    ("ExponentialLR", {"gamma": 0.97}, "exponential", {}),
    ("PolynomialLR", {"total_iters": 40, "power": 2.0}, "polynomial", {}),
    ("CosineAnnealingLR", {"T_max": 25, "eta_min": 0.01}, "cosine_annealing", {}),
    ("CosineAnnealingLR", {"T_max": N}, "CosineAnnealingLR", {"T_max": None}),
    ("CosineAnnealingWarmRestarts", {"T_0": 7}, "warm_restarts", {}),
    ("CosineAnnealingWarmRestarts", {"T_0": 5, "T_mult": 3, "eta_min": 1e-3},
     "cosine_annealing_warm_restarts", {}),
    ("OneCycleLR", {"max_lr": 0.7, "total_steps": N, "cycle_momentum": False},
     "one_cycle", {}),
    ("OneCycleLR", {"max_lr": 0.3, "total_steps": N, "cycle_momentum": False},
     "OneCycleLR", {"max_lr": None, "total_steps": None}),
    ("OneCycleLR", {"max_lr": 2.0, "total_steps": N, "cycle_momentum": False,
                    "anneal_strategy": "linear", "three_phase": True,
                    "pct_start": 0.2, "div_factor": 10.0}, "onecycle", {}),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.9, "step_size_up": 7,
                  "cycle_momentum": False}, "cyclic", {}),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.9, "step_size_up": 7,
                  "step_size_down": 11, "mode": "triangular2",
                  "cycle_momentum": False}, "cyclic", {}),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.9, "step_size_up": 4, "gamma": 0.98,
                  "mode": "exp_range", "cycle_momentum": False}, "CyclicLR", {}),
    ("LinearLR", {"start_factor": 1.0, "end_factor": 0.1, "total_iters": N},
     "linear", {"end_factor": 0.1, "start_factor": None, "total_iters": None}),
    ("CosineAnnealingLR", {"T_max": N, "eta_min": 0.03},
     "cosine", {"end_factor": 0.1, "T_max": None, "eta_min": None}),
]  # fmt: skip


def config_of(**keys):
    keys = {"learning_rate": 0.3, "rounds": N} | keys
    config, _ = parse(
        {"model_file": "m.pt", "partition": {"source": "mnist"}, "num_parties": 2}
        | keys
    )
    assert isinstance(config, FederationConfig)
    return config


def problems_of(**keys):
    return config_of(**keys).problems()


def of_torch(scheduler, n=N, rate=0.3):
    """The rates that torch's own object gives, one after each of its steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made, rates = scheduler(optimizer), []
        for _ in range(n):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            made.step()
    return rates


def rounds_of(config, n=N):
    return [rate_function(config, round, 1)(0) for round in range(1, n + 1)]


@pytest.mark.parametrize(("name", "args", "own", "changes"), CASES)
def test_rates_are_those_of_torch(name, args, own, changes):
    expected = of_torch(lambda o: getattr(torch_schedulers, name)(o, **args))
    merged = {k: v for k, v in (args | changes).items() if v is not None}
    config = config_of(scheduler=own, scheduler_args=merged)
    assert config.problems() == []
    assert rounds_of(config) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("name", "args", "own", "changes"), CASES)
def test_steps_are_counted_over_all_rounds(name, args, own, changes):
    expected = of_torch(lambda o: getattr(torch_schedulers, name)(o, **args))
    merged = {k: v for k, v in (args | changes).items() if v is not None}
    keys = {"scheduler_every": "step", "rounds": 12, "local_steps": 5}
    config = config_of(scheduler=own, scheduler_args=merged, **keys)
    assert config.problems() == []
    rates = [rate_function(config, r, 5)(s) for r in range(1, 13) for s in range(5)]
    assert rates == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["cosine", "linear", "StepLR"])
def test_a_warm_up_rises_evenly_and_then_the_schedule_begins(name):
    args = {"step_size": 4, "gamma": 0.5} if name == "StepLR" else {}
    config = config_of(scheduler=name, scheduler_args={**args, "warmup": 5}, rounds=20)
    rates = rounds_of(config, 20)
    assert rates[:5] == pytest.approx([0.06, 0.12, 0.18, 0.24, 0.3], rel=1e-12)

    def after(optimizer):
        if name == "cosine":
            return torch_schedulers.CosineAnnealingLR(optimizer, 15)
        if name == "StepLR":
            return torch_schedulers.StepLR(optimizer, **args)
        return torch_schedulers.LinearLR(optimizer, 1.0, 0.0, 15)

    assert rates[5:] == pytest.approx(of_torch(after, 15), rel=1e-9)


def test_without_a_scheduler_the_rate_stays():
    assert rate_function(config_of(), 7, 3)(2) == 0.3
    assert rate_function(config_of(), 7, 3, 0.05)(2) == 0.05


def test_total_rounds_say_how_long_a_decay_is_whatever_the_run():
    args = {"scheduler": "cosine", "scheduler_args": {"total_rounds": 10}}
    short, long = config_of(rounds=5, **args), config_of(rounds=10, **args)
    assert rounds_of(short, 5) == rounds_of(long, 5)
    assert rounds_of(long, 12)[10:] == [0.0, 0.0]  # it stays down
    steps = {"scheduler_every": "step", "local_steps": 4}
    short, long = (config_of(rounds=n, **args, **steps) for n in (5, 10))
    at = [(r, s) for r in range(1, 6) for s in range(4)]
    assert [rate_function(short, r, 4)(s) for r, s in at] == [
        rate_function(long, r, 4)(s) for r, s in at
    ]


BAD = [
    ({"scheduler": "cosin"}, "unknown scheduler 'cosin'; did you mean 'cosine'?"),
    ({"scheduler": "LambdaLR"}, "scheduler LambdaLR needs a function"),
    ({"scheduler": "torch.optim.lr_scheduler.MultiplicativeLR"}, "needs a function"),
    ({"scheduler": "SequentialLR"}, "is made of other schedulers"),
    ({"scheduler": "StepLR"}, "scheduler_args.step_size is missing"),
    ({"scheduler": "StepLR", "scheduler_args": {"step_sise": 3}},
     "unknown argument of scheduler StepLR 'step_sise'; did you mean 'step_size'?"),
    ({"scheduler": "StepLR", "scheduler_args": {"step_size": 0}},
     "scheduler_args.step_size must be"),
    ({"scheduler": "StepLR", "scheduler_args": {"step_size": 2.5}},
     "scheduler_args.step_size must be a whole number"),
    ({"scheduler": "exponential", "scheduler_args": {"gamma": "a"}},
     "scheduler_args.gamma must be a finite number"),
    ({"scheduler": "exponential", "scheduler_args": {"gamma": float("nan")}},
     "scheduler_args.gamma must be a finite number"),
    ({"scheduler": "exponential", "scheduler_args": {"gamma": 1e300}},
     "scheduler_args.gamma: the learning rate is no number any more"),
    ({"scheduler": "MultiStepLR", "scheduler_args": {"milestones": []}},
     "scheduler_args.milestones must be whole numbers"),
    ({"scheduler": "MultiStepLR", "scheduler_args": {"milestones": ["a"]}},
     "scheduler_args.milestones[0] must be a whole number"),
    ({"scheduler": "cosine", "scheduler_args": {"warmup": 61}},
     "scheduler_args.warmup: 61 is longer than the run (60 rounds)"),
    ({"scheduler": "cosine", "scheduler_args": {"warmup": 3, "total_rounds": 2}},
     "scheduler_args.warmup: 3 is longer than total_rounds"),
    ({"scheduler": "cosine", "scheduler_args": {"warmup_steps": 3}},
     "did you mean 'warmup'?"),
    ({"scheduler": "step", "scheduler_args": {"step_size": 2, "last_epoch": 3}},
     "scheduler_args.last_epoch is not taken: fedray counts"),
    ({"scheduler": "one_cycle", "scheduler_args": {"total_steps": 3}},
     "scheduler_args.total_steps: 3 end before the run (60 rounds)"),
    ({"scheduler": "one_cycle", "scheduler_args": {"cycle_momentum": True}},
     "scheduler_args.cycle_momentum is not taken: the rate alone is cycled"),
    ({"scheduler": "cyclic", "scheduler_args": {"base_lr": 1.0, "max_lr": 2.0,
      "scale_fn": 3}}, "scheduler_args.scale_fn is not taken: it is a function"),
    ({"scheduler": "plateau", "scheduler_every": "step"},
     "ReduceLROnPlateau goes by evaluated rounds"),
    ({"scheduler": "plateau", "scheduler_args": {"factor": 1.0}},
     "scheduler_args.factor must be below 1"),
    ({"scheduler": "plateau", "scheduler_args": {"mode": "less"}},
     "unknown mode 'less'"),
    ({"scheduler_args": {"gamma": 0.1}}, "scheduler_args has no effect without"),
    ({"scheduler_every": "step"}, "scheduler_every has no effect without scheduler"),
    ({"epochs": 2, "local_steps": 3}, "epochs has no effect with local_steps: 3"),
    ({"local_steps": 0}, "local_steps must be"),
    ({"gradient_clip_norm": 0.0}, "gradient_clip_norm must be above 0"),
    ({"gradient_clip_norm": -1.0}, "gradient_clip_norm must be above 0"),
    ({"mixed_precision": "fp16"}, "unknown mixed_precision 'fp16'"),
    ({"model_type": "doc2vec", "fusion_algorithm": "doc2vec", "local_steps": 3},
     "local_steps has no effect with model_type: doc2vec"),
    ({"model_type": "doc2vec", "fusion_algorithm": "doc2vec", "scheduler": "cosine"},
     "scheduler has no effect with model_type: doc2vec"),
    ({"model_type": "sklearn", "gradient_clip_norm": 1.0},
     "gradient_clip_norm has no effect with model_type: sklearn"),
    ({"model_type": "sklearn", "scheduler": "cosine", "scheduler_every": "step"},
     "scheduler_every has no effect with model_type: sklearn"),
    ({"model_type": "mine.py:Model", "scheduler": "cosine",
      "scheduler_every": "step"}, "scheduler_every: step needs local_steps"),
    ({"lr_scheduler": "cosine"}, "did you mean 'scheduler'?"),
    ({"max_grad_norm": 1.0}, "did you mean 'gradient_clip_norm'?"),
    ({"num_steps": 3}, "did you mean 'local_steps'?"),
    ({"amp": True}, "did you mean 'mixed_precision'?"),
    ({"warmup": 3}, "write scheduler: cosine and scheduler_args: {warmup: ...}"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "message"), BAD)
def test_mistakes_are_said_by_name(keys, message):
    _, mistakes = parse(
        {"model_file": "m.pt", "partition": {"source": "mnist"}, "num_parties": 2}
        | {"rounds": N}
        | keys
    )
    config, _ = parse(
        {"model_file": "m.pt", "partition": {"source": "mnist"}, "num_parties": 2}
        | {"rounds": N}
        | keys
    )
    problems = [*mistakes, *(config.problems() if config else [])]
    assert any(message in problem for problem in problems), problems
