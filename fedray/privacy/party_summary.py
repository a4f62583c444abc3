"""What a party's books say, as plain data for whoever owns the data."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from fedray.privacy.data_accounts import Account, DataSet, Training
from fedray.privacy.party_book import RESET, PartyBook
from fedray.privacy.sample_budget import epsilon_of_spent


def summarize(book: PartyBook) -> dict[str, Any]:
    """All that is in books that are open, in plain values."""
    accounts = [one for own in book.accounts for one in _of_account(book, own)]
    resets = [line for line in book.lines if line["kind"] == RESET]
    return {
        "party_dir": str(book.party_dir),
        "limit": book.accounts.owner_epsilon,
        "data": accounts,
        "central": list(_of_central(book)),
        "resets": [{k: v for k, v in line.items() if k != "kind"} for line in resets],
    }


def _of_account(book: PartyBook, account: Account) -> Iterator[dict[str, Any]]:
    """What was spent of one account: of its whole data sets, and of each cut."""
    by_cut: dict[tuple[str, str], list[DataSet]] = defaultdict(list)
    for data in account.by_set:
        by_cut[(data.source, data.cut) if data.cut else ("", "")].append(data)
    for (_, cut), sets in by_cut.items():
        limit = book.accounts.limit_of(sets[0])
        delta = limit.delta if limit else account.by_set[sets[0]][0].delta
        spent = {data: account.spent_by(data) for data in sets}
        epsilons = {data: epsilon_of_spent(own, delta) for data, own in spent.items()}
        most = max(sets, key=lambda data: epsilons[data])
        trainings = [t for data in sets for t in account.by_set[data]]
        of_most = [t for data in account.alike(most) for t in account.by_set[data]]
        yield {
            "sources": sorted({data.source or "in memory" for data in sets}),
            "contents": sorted({data.content[:12] for data in sets})[:20],
            "parties": list(dict.fromkeys(t.party for t in trainings))[:20],
            "n_parts": len({data.part for data in sets}) if cut else 0,
            "n_samples": max(t.n_samples for t in trainings),
            "epsilon": epsilons[most],
            "delta": delta,
            "limit": limit.epsilon if limit else None,
            "limit_by": "first run" if book.accounts.owner_epsilon is None else "owner",
            "runs": list(_of_runs(of_most)),
        }


def _of_runs(trainings: Sequence[Training]) -> Iterator[dict[str, Any]]:
    """What each run has spent of a data set, in the order in which they began."""
    by_run: dict[str, list[Training]] = defaultdict(list)
    for training in trainings:
        by_run[training.run].append(training)
    for run, own in by_run.items():
        spent = sum((t.spent for t in own[1:]), own[0].spent)
        yield {
            "run": run,
            "rounds": len({(t.group, t.round) for t in own}),
            "trainings": len(own),
            "epsilon": epsilon_of_spent(spent, own[0].delta),
            "delta": own[0].delta,
            "noise_multiplier": own[-1].noise_multiplier,
            "sampling_rate": own[-1].rate,
            "steps": sum(t.n_steps for t in own),
        }


def _of_central(book: PartyBook) -> Iterator[dict[str, Any]]:
    """What central releases have told of each party, over all runs."""
    for one in book.central.spent():
        yield {
            "source": one.source or "in memory",
            "n_parts": one.n_parts if one.cut else 0,
            "epsilon": one.epsilon,
            "delta": one.delta,
            "runs": [
                {
                    "run": run.run,
                    "mechanism": run.mechanism,
                    "sampling": run.sampling,
                    "noise_multiplier": run.noise_multiplier,
                    "releases": n_releases,
                    "claimed_epsilon": run.epsilon,
                    "claimed_delta": run.delta,
                    "secure_aggregation": run.is_secure,
                }
                for run, n_releases in one.releases.items()
            ],
        }
