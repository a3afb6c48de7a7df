"""Who trains what: a sweep's groups, whole or in parts, spread over processes."""

from collections.abc import Sequence


def spread(groups: Sequence[Sequence[int]], work: Sequence[float], processes: int) -> list[list[int]]:
    """Numbers of the trainings that each process takes, where none is without: at most so many `processes`.

    Trainings of one group share a forward pass of the teacher, so groups stay whole where there are as many as
    processes; the largest goes first, to whom has least (Graham 1969). Where there are fewer, that group is split which
    has most work for each process that is at it, into parts that differ by one at most. `work` is that of each
    training, by its number.
    """
    parts = [list(group) for group in groups]
    if len(groups) < processes:
        parts = _in_parts(parts, work, processes)
    shares: list[list[int]] = [[] for _ in range(min(processes, len(parts)))]
    for part in sorted(parts, key=lambda part: -_sum(part, work)):
        min(shares, key=lambda share: _sum(share, work)).extend(part)
    return sorted(sorted(share) for share in shares)


def _in_parts(groups: Sequence[Sequence[int]], work: Sequence[float], processes: int) -> list[list[int]]:
    counts = [1] * len(groups)
    for _ in range(min(processes, sum(map(len, groups))) - len(groups)):
        divisible = [place for place, group in enumerate(groups) if counts[place] < len(group)]
        counts[max(divisible, key=lambda place: _sum(groups[place], work) / counts[place])] += 1
    return [
        list(group[len(group) * part // count : len(group) * (part + 1) // count])
        for group, count in zip(groups, counts, strict=True)
        for part in range(count)
    ]


def _sum(numbers: Sequence[int], work: Sequence[float]) -> float:
    return sum(work[number] for number in numbers)
