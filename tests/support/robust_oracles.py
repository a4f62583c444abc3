"""Robust rules straight from their papers' definitions: plain loops in float64.

Each takes the parties' vectors (n, P) and gives the fused one (P,).
"""

import itertools
import math

import numpy as np


def coordinate_median(rows):
    columns = [sorted(float(row[j]) for row in rows) for j in range(len(rows[0]))]
    n = len(rows)
    return [(c[(n - 1) // 2] + c[n // 2]) / 2 for c in columns]


def trimmed_mean(rows, n_trim):
    fused = []
    for j in range(len(rows[0])):
        column = sorted(float(row[j]) for row in rows)
        kept = column[n_trim : len(column) - n_trim]
        fused.append(math.fsum(kept) / len(kept))
    return fused


def squared_distance(a, b):
    return math.fsum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))


def krum_scores(rows, f, n_near=None):
    n = len(rows)
    n_near = n - f - 2 if n_near is None else n_near
    scores = []
    for i in range(n):
        others = [squared_distance(rows[i], rows[j]) for j in range(n) if j != i]
        scores.append(math.fsum(sorted(others)[:n_near]))
    return scores


def best(rows, scores):
    """Lowest scores first; of equal ones the lexicographically smallest vector."""
    order = range(len(rows))
    return sorted(order, key=lambda i: (scores[i], tuple(map(float, rows[i]))))


def krum(rows, f):
    return rows[best(rows, krum_scores(rows, f))[0]]


def multi_krum(rows, f, m):
    chosen = best(rows, krum_scores(rows, f))[:m]
    return [
        math.fsum(float(rows[i][j]) for i in chosen) / m for j in range(len(rows[0]))
    ]


def bulyan(rows, f):
    left, chosen = list(rows), []
    for _ in range(len(rows) - 2 * f):
        n_near = max(1, len(left) - f - 2)
        chosen.append(left.pop(best(left, krum_scores(left, f, n_near))[0]))
    theta = len(chosen)
    beta = theta - 2 * f
    middle, fused = coordinate_median(chosen), []
    for j, m in enumerate(middle):
        column = [float(row[j]) for row in chosen]
        nearest = sorted(column, key=lambda x, m=m: (abs(x - m), x))[:beta]
        fused.append(math.fsum(nearest) / beta)
    return fused


def summed_distances(point, rows):
    return math.fsum(math.sqrt(squared_distance(point, row)) for row in rows)


def geometric_median(rows, steps=20_000):
    """Weiszfeld from the mean, with no more smoothing than keeps 1/0 away."""
    rows = np.asarray(rows, np.float64)
    point = rows.mean(axis=0)
    for _ in range(steps):
        near = 1 / np.maximum(np.linalg.norm(rows - point, axis=1), 1e-12)
        new = (near[:, None] * rows).sum(axis=0) / near.sum()
        if np.array_equal(new, point):
            break
        point = new
    best_row = min(rows, key=lambda row: summed_distances(row, rows))
    return min(point, best_row, key=lambda p: summed_distances(p, rows))


def clipped_mean(rows, centre, tau):
    """Centre plus the mean of differences cut to length tau."""
    total = [0.0] * len(centre)
    for row in rows:
        step = [float(x) - float(c) for x, c in zip(row, centre, strict=True)]
        length = math.sqrt(math.fsum(s * s for s in step))
        factor = min(1.0, tau / length) if length else 1.0
        total = [t + factor * s for t, s in zip(total, step, strict=True)]
    return [c + t / len(rows) for c, t in zip(centre, total, strict=True)]


def all_subset_means(rows, size):
    """Means of every bucket of this size that can be drawn."""
    return [np.mean(some, axis=0) for some in itertools.combinations(rows, size)]
