"""What counts have grown by over the last minutes, from samples of counts that only grow."""

from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

SECONDS = (60, 300, 3600)
"""The windows that are told of."""

EVERY_S = 1.0
"""How far samples are apart."""

POINT_S = 5.0
"""How far points of the history are apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """By how much each count grew over `covered_s` seconds, which are fewer than asked for where samples are missing."""

    covered_s: float
    counts: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """By how much each count grew until `epoch_s`, since the point before."""

    epoch_s: float
    counts: dict[str, float]


class Windows:
    """A bounded ring of samples, an hour long. One thread uses it; time is what callers say it is.

    A count that is smaller than before has begun anew, as after a restart of what counts: all of it is growth. Growth
    from before the first sample is not known, and not counted.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._last: dict[str, float] | None = None
        self._total = array("d", bytes(8 * len(self._names)))
        # sums of growth since the first sample, so that a window is one subtraction
        self._samples: deque[tuple[float, array[float]]] = deque(maxlen=int(2 * SECONDS[-1] / EVERY_S))
        self._points: deque[tuple[float, array[float]]] = deque(maxlen=int(SECONDS[-1] / POINT_S))
        self._point_from: tuple[float, array[float]] | None = None

    def add(self, at_s: float, counts: Mapping[str, float], *, epoch_s: float) -> None:
        """Note what the counts are at a moment, not before that of the last sample. A count that is missing is 0."""
        now = {name: float(counts.get(name, 0)) for name in self._names}
        total = array("d", self._total)
        for index, name in enumerate(self._names):
            before = now[name] if self._last is None else self._last[name]
            total[index] += now[name] - before if now[name] >= before else now[name]
        self._last, self._total = now, total
        self._put(at_s, epoch_s)

    def stay(self, at_s: float, *, epoch_s: float) -> None:
        """The counts are what they were at the last sample, up to this moment: what samples there would have been are made up."""
        if not self._samples:
            return
        last_s = self._samples[-1][0]
        num_missing = int((at_s - last_s) / EVERY_S)
        for number in range(max(0, num_missing - int(SECONDS[-1] / EVERY_S)), num_missing):
            sampled_s = last_s + (number + 1) * EVERY_S
            self._put(sampled_s, epoch_s - (at_s - sampled_s))

    def _put(self, at_s: float, epoch_s: float) -> None:
        """A sample of what has grown by this moment."""
        total = self._total
        self._samples.append((at_s, total))
        while self._samples[0][0] < at_s - SECONDS[-1] - EVERY_S:
            self._samples.popleft()
        if self._point_from is None:
            self._point_from = at_s, total
        elif at_s - self._point_from[0] >= POINT_S - EVERY_S / 2:
            self._points.append((epoch_s, _difference(total, self._point_from[1])))
            self._point_from = at_s, total

    def growth(self, seconds: float) -> Growth | None:
        """Growth over the last seconds before the newest sample; None with fewer than two samples in that time."""
        if not self._samples:
            return None
        newest_s, newest = self._samples[-1]
        from_s = newest_s - seconds - EVERY_S / 2  # samples are never exactly a second apart
        oldest_s, oldest = next(sample for sample in self._samples if sample[0] >= from_s)
        if oldest_s == newest_s:
            return None
        return Growth(covered_s=newest_s - oldest_s, counts=self._named(_difference(newest, oldest)))

    def history(self) -> Iterator[Point]:
        """Growth in steps of about five seconds, for the last hour, oldest first. A step is longer where samples are missing."""
        for epoch_s, counts in self._points:
            yield Point(epoch_s=epoch_s, counts=self._named(counts))

    def _named(self, counts: "array[float]") -> dict[str, float]:
        return dict(zip(self._names, counts, strict=True))


def _difference(new: "array[float]", old: "array[float]") -> "array[float]":
    return array("d", (after - before for after, before in zip(new, old, strict=True)))
