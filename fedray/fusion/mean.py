"""FedAvg and plain averaging: means of the parties' weights."""

from fedray.fusion.base import FusionRule


class FedAvg(FusionRule):
    """Mean weighted by samples: w = Σ n_k w_k / Σ n_k.

    Source: McMahan et al. 2017, arXiv:1602.05629, Algorithm 1.
    """

    name = "fedavg"
    weight_by = "n_samples"
    needs_rounds = False


class IterAvg(FusionRule):
    """Plain mean of all parties: w = Σ w_k / K, however many samples each has."""

    name = "iter_avg"
    weight_by = "n_parties"
    needs_rounds = False
