"""Which of the parties' optimizers FedNova and SCAFFOLD are defined for."""

from typing import Any

from fedray.config.conditions import LOCAL_STEPS, NETWORKS
from fedray.config.declaration import name_of
from fedray.config.keys import FederationKeys

# arguments of SGD, of PyTorch and of Keras, that a rule's formulas cover; a decay of
# the weights is a term of each party's loss
COVERED = {
    "fednova": ("momentum", "dampening", "nesterov", "weight_decay", "maximize"),
    "scaffold": ("weight_decay", "dampening"),
}
HOW = ("foreach", "fused", "differentiable", "name")  # only how a step is computed
PLAIN = {
    "fednova": "SGD, with momentum or without",
    "scaffold": "plain SGD, without momentum",
}


def local_solver_problems(config: FederationKeys) -> list[str]:
    """Why FedNova or SCAFFOLD is not defined for how these parties train.

    A key that is not set (optimizer of a Keras file) is looked at once it is known.
    """
    rule = config.fusion_algorithm
    if rule not in LOCAL_STEPS:
        return []
    if name_of(config.model_type) not in NETWORKS["model_type"]:
        return [
            f"fusion_algorithm: {rule} goes by the training steps that fedray takes: "
            f"it is for model_type pytorch or keras, got {config.model_type}"
        ]
    optimizer = config.optimizer or "SGD"
    if optimizer.rpartition(".")[2].lower() != "sgd":
        return [
            f"fusion_algorithm: {rule} is defined for {PLAIN[rule]}, got optimizer: "
            f"{optimizer}: take optim.SGD, or another fusion_algorithm"
        ]
    return _argument_problems(config) + _pull_problems(config)


def _argument_problems(config: FederationKeys) -> list[str]:
    """Arguments of SGD that the rule's formulas do not cover."""
    rule, args = config.fusion_algorithm, config.optimizer_args
    problems = [
        f"optimizer_args.{name}: {value} does not go with fusion_algorithm: {rule}, "
        f"which is defined for {PLAIN[rule]}: leave it out"
        for name, value in args.items()
        if name not in (*COVERED[rule], *HOW) and _is_on(value)
    ]
    is_decoupled = config.model_type == "keras" and _is_on(args.get("weight_decay"))
    if rule == "fednova" and is_decoupled and _is_on(args.get("momentum")):
        problems.append(
            "optimizer_args.weight_decay does not go with fusion_algorithm: fednova "
            "and momentum with model_type: keras, whose SGD decays weights beside the "
            "momentum: leave one of them out"
        )
    return problems


def _pull_problems(config: FederationKeys) -> list[str]:
    """A pull towards the global weights that the rule's formulas do not cover."""
    rule, mu = config.fusion_algorithm, config.proximal_mu
    if not mu:
        return []
    if rule == "scaffold":
        return [
            f"proximal_mu: {mu:g} does not go with fusion_algorithm: scaffold, whose "
            "control variates correct the same drift: leave it out"
        ]
    problems = []
    rate = config.learning_rate
    if rate is not None and rate * mu >= 1:
        problems.append(
            f"proximal_mu: {mu:g} times learning_rate: {rate:g} must be below 1 with "
            "fusion_algorithm: fednova: a step would go beyond the global weights"
        )
    if config.gradient_clip_norm is not None:
        problems.append(
            "proximal_mu and gradient_clip_norm do not go together with "
            "fusion_algorithm: fednova, which counts the pull of whole steps"
        )
    return problems


def _is_on(value: Any) -> bool:
    return value not in (None, False, 0)
