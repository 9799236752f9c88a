# SPDX-License-Identifier: Apache-2.0
"""What a change gave, from rounds in which the unchanged and the changed ran side by side.

Only the differences inside rounds count, so what slows a whole round down falls out. They are judged by
Wilcoxon's signed ranks, exactly and without assuming any shape of the noise: without an effect each
difference is as likely to be negative as positive, and so is each way of giving signs to their ranks.
"""
import dataclasses
import statistics

LEVEL = 0.05  # chance of taking noise for an effect, in one comparison
LEAST_ROUNDS = 6  # with fewer no outcome whatever is that unlikely by chance


@dataclasses.dataclass
class Comparison:
    rounds: int
    base: float  # median of the unchanged
    saving: float  # middle of the means of all pairs of differences (Hodges and Lehmann); above 0: faster
    low: float | None  # 95 % interval of the saving; None where there are too few rounds for one
    high: float | None
    p: float  # how likely a difference at least so clear is by chance

    @property
    def ratio(self):
        return self.saving / self.base if self.base else 0.0

    @property
    def significant(self):
        return self.p < LEVEL


def rank_sums(ranks):
    """How many of the ways to give signs to `ranks` (whole numbers) have each sum of positive ones."""
    counts = {0: 1}
    for rank in ranks:
        more = dict(counts)
        for total, count in counts.items():
            more[total + rank] = more.get(total + rank, 0) + count
        counts = more
    return counts


def doubled_ranks(sizes):
    """Twice the rank of each size, so that equal ones share a whole number."""
    ordered = sorted(sizes)
    first = {size: ordered.index(size) for size in set(ordered)}
    return [2 * first[size] + 1 + ordered.count(size) for size in sizes]


def chance(differences):
    """The two-sided probability of ranks as one-sided as those of `differences`."""
    differences = [difference for difference in differences if difference != 0]
    ranks = doubled_ranks([abs(difference) for difference in differences])
    positive = sum(rank for rank, difference in zip(ranks, differences) if difference > 0)
    clear = max(positive, sum(ranks) - positive)
    at_least = sum(count for total, count in rank_sums(ranks).items() if total >= clear)
    return min(1.0, 2 * at_least / 2 ** len(ranks))


def interval(differences):
    """(estimate, low, high): the middle of the means of all pairs, and how far off it may be."""
    n = len(differences)
    means = sorted((differences[i] + differences[j]) / 2 for i in range(n) for j in range(i, n))
    estimate = statistics.median(means)
    counts = rank_sums(range(1, n + 1))
    outside, below = 0, 0
    while (below + counts.get(outside, 0)) / 2 ** n <= LEVEL / 2:
        below += counts.get(outside, 0)
        outside += 1
    if outside == 0:
        return estimate, None, None
    return estimate, means[outside - 1], means[-outside]


def compare(base, changed):
    """`base` and `changed` hold a figure for each round, in the same order."""
    differences = [before - after for before, after in zip(base, changed, strict=True)]
    estimate, low, high = interval(differences)
    return Comparison(len(differences), statistics.median(base), estimate, low, high,
                      chance(differences))
