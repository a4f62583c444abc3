"""Whether what was found at the parties goes together."""

from collections import Counter

from fedray.config import FederationConfig
from fedray.ensemble import Form, disagreeing
from fedray.messages import Found


def compared(found: dict[str, Found], config: FederationConfig) -> list[str]:
    """Samples of one form everywhere; who differs from most is named.

    Of an ensemble's members as many classes, and samples that one array can serve.
    """
    if config.fusion_algorithm == "ensemble":
        names = [party.name for party in config.parties if party.name in found]
        ones = [found[name] for name in names]
        forms = [Form(tuple(one.sample), one.n_classes) for one in ones]
        members = dict(zip(names, forms, strict=True))
        return [
            f"{'party ' * (name in members)}{name}: {why}"
            for name, why in disagreeing(members, config).items()
        ]
    forms = Counter((one.samples, one.targets) for one in found.values())
    if len(forms) < 2:
        return []
    problems = []
    (samples, targets), _ = forms.most_common(1)[0]
    for name, one in found.items():
        if (one.samples, one.targets) != (samples, targets):
            got = f"samples {one.samples} with targets {one.targets}"
            most = f"{samples} with {targets}"
            problems.append(f"party {name}: has {got}, most have {most}")
    return problems
