"""Which words a model is made of. Pure, without gensim."""

from collections.abc import Iterable

from fedray.config import Doc2VecSpec
from fedray.messages import WordCounts


def merged(surveys: Iterable[WordCounts]) -> WordCounts:
    """Sums over sites."""
    total = WordCounts({}, {})
    for survey in surveys:
        for word, count in survey.counts.items():
            total.counts[word] = total.counts.get(word, 0) + count
            n_parties = survey.parties[word]
            total.parties[word] = total.parties.get(word, 0) + n_parties
    return total


def chosen_words(counts: WordCounts, spec: Doc2VecSpec) -> list[str]:
    """Words that are common enough, in the order of their rows: by (-count, word)."""
    kept = [
        word
        for word, count in counts.counts.items()
        if count >= spec.min_count and counts.parties[word] >= spec.min_parties
    ]
    return sorted(kept, key=lambda word: (-counts.counts[word], word))
