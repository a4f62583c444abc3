"""Vocabulary: sums the parties' word counts and selects the model's words.

Pure functions, without gensim.
"""

from collections.abc import Iterable

from fedray.config import Doc2VecSpec
from fedray.messages import WordCounts


def merge_counts(site_counts: Iterable[WordCounts]) -> WordCounts:
    """Sum the word counts of several sites, each of which holds some parties."""
    total = WordCounts({}, {})
    for site in site_counts:
        for word, count in site.counts.items():
            total.counts[word] = total.counts.get(word, 0) + count
            n_parties = site.parties[word]
            total.parties[word] = total.parties.get(word, 0) + n_parties
    return total


def select_words(counts: WordCounts, spec: Doc2VecSpec) -> list[str]:
    """Words of `min_count` uses and `min_parties` parties, in the order of their rows.

    Sorted by count, highest first, then by word.
    """
    words = [
        word
        for word, count in counts.counts.items()
        if count >= spec.min_count and counts.parties[word] >= spec.min_parties
    ]
    return sorted(words, key=lambda word: (-counts.counts[word], word))
