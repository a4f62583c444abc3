"""Means of the parties' weights."""

from collections.abc import Iterator

from fedray.fusion.base import Fusion, weighted_mean
from fedray.messages import Update


class FedAvg(Fusion):
    """Mean weighted by samples: w = Σ n_k w_k / Σ n_k.

    Source: McMahan et al. 2017, arXiv:1602.05629, Algorithm 1.
    """

    by = "n_samples"

    def combine(self, updates: Iterator[Update]) -> Update:
        """Weighted mean; combined updates weigh as the samples behind them."""
        return weighted_mean(updates, self.by, "fedavg")


class IterAvg(Fusion):
    """Plain mean of all parties: w = Σ w_k / K, however many samples each has."""

    by = "n_parties"

    def combine(self, updates: Iterator[Update]) -> Update:
        """Plain mean; combined updates weigh as the parties behind them."""
        return weighted_mean(updates, self.by, "iter_avg")
