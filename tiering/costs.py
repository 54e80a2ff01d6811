"""What prefilling and loading cost on this machine, learned from what they took.

    prefill   call_s + token_s * n + pair_s * n * (start + n / 2)       n tokens behind `start` others
    load      latency_s + byte_s * (bytes + bytes queued before them)   of each tier below the device

Nothing is assumed: without observations there is no curve. The newest observations weigh most; of each order of magnitude
some are kept, so that traffic of one size does not wear out what is known of the others. No clock, no thread, no torch.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from kvstore.reports import TierName
from tiering.fitting import fit

VERSION: Final = 1
"""Of what `Costs.as_json` answers; another one is not read."""

LOADED_FROM: Final[tuple[TierName, ...]] = ("host", "disk")

_KEPT: Final = 16
"""Observations of a size: enough to tell noise from cost, few enough to be fitted in a millisecond."""
_HALF_LIFE: Final = 64
"""Observations after which one weighs half: a disk that has become slower is believed within as many."""
_HALF_LIFE_S: Final = 86_400.0
"""So long kept, they weigh half as well: the machine may be another's neighbour by now."""
_MOST_HALF_LIVES: Final = 4
_LEAST_WEIGHT: Final = 2.0**-_MOST_HALF_LIVES
"""... and what is all that is known of a size is not forgotten, only outvoted."""
_DOUBT: Final = 1e-5
"""Of all terms but the plain one, so many seconds a token or a byte: a single observation is all speed, and no latency."""
_BEST_TIMES: Final = 4.0
"""Nothing goes faster than so many times the fastest seen: what a curve says far from what was observed stays sane."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillCurve:
    """Seconds to compute tokens: for the call, for each token, and for each pair of a token and one before it."""

    call_s: float = 0.0
    token_s: float
    pair_s: float = 0.0

    def __post_init__(self) -> None:
        _check_costs(self)

    def seconds(self, start_tokens: int, num_tokens: int) -> float:
        """To compute `num_tokens` behind `start_tokens` whose KV is there. 0 for none."""
        if num_tokens <= 0:
            return 0.0
        pairs = num_tokens * (start_tokens + num_tokens / 2)
        return self.call_s + self.token_s * num_tokens + self.pair_s * pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadCurve:
    """Seconds to bring KV to the device: until the first byte, and for each. Bytes are of KV, whatever the disk stores."""

    latency_s: float = 0.0
    byte_s: float

    def __post_init__(self) -> None:
        _check_costs(self)

    def seconds(self, num_bytes: int, queued_bytes: int = 0) -> float:
        """To load `num_bytes` behind `queued_bytes` that were asked for before. 0 for none."""
        if num_bytes <= 0:
            return 0.0
        return self.latency_s + self.byte_s * (num_bytes + queued_bytes)


def _check_costs(curve: PrefillCurve | LoadCurve) -> None:
    for name, value in asdict(curve).items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a number of seconds from 0 on, not {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """What is known now; None, or a tier that is missing, where nothing was observed."""

    prefill: PrefillCurve | None
    loads: Mapping[TierName, LoadCurve]


@dataclass(frozen=True, slots=True)
class _Observation:
    number: int
    before: int
    """Tokens or bytes that were there, or asked for, before ..."""
    size: int
    """... and those that took ..."""
    seconds: float


class _Observed:
    """The last observations of each order of magnitude. `check` says what holds."""

    def __init__(self) -> None:
        self._by_size: dict[tuple[int, int], deque[_Observation]] = {}
        self.num_seen = 0
        self.num_since_fit = 0
        self.largest = 0
        """Of all sizes that were seen."""
        self._next_number = 0

    def __len__(self) -> int:
        return sum(map(len, self._by_size.values()))

    def add(self, before: int, size: int, seconds: float) -> None:
        """One more. What took no time, or has no size, says nothing."""
        if before < 0:
            raise ValueError(f"what was before must not be negative, got {before}")
        if size <= 0 or not 0 < seconds < math.inf:
            return
        of_size = (before.bit_length() // 2, size.bit_length() // 2)
        if of_size not in self._by_size:  # worth as much as many of those that are known
            self.num_since_fit += len(self)
        kept = self._by_size.setdefault(of_size, deque(maxlen=_KEPT))
        kept.append(_Observation(self._next_number, before, size, float(seconds)))
        self._next_number += 1
        self.largest = max(self.largest, size)
        self.num_seen += 1
        self.num_since_fit += 1

    def grow_older(self, by: int) -> None:
        """As if so many more had been seen since, without any of them being known."""
        self._next_number += by

    @property
    def is_due(self) -> bool:
        """Whether a fit would know enough more than the last one."""
        return self.num_since_fit > len(self) // 16

    def in_order(self) -> list[_Observation]:
        """The oldest first."""
        kept = [each for some in self._by_size.values() for each in some]
        return sorted(kept, key=lambda each: each.number)

    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """before, size, seconds and weight, each [n] float64."""
        self.num_since_fit = 0
        rows = self.in_order()
        values = np.array([(each.before, each.size, each.seconds) for each in rows], dtype=np.float64)
        age = self._next_number - 1 - np.array([each.number for each in rows], dtype=np.float64)
        return values[:, 0], values[:, 1], values[:, 2], np.maximum(0.5 ** (age / _HALF_LIFE), _LEAST_WEIGHT)

    def check(self) -> None:
        """Raise AssertionError if observations are lost, double or in the wrong place."""
        numbers = [each.number for each in self.in_order()]
        assert len(set(numbers)) == len(numbers) <= self.num_seen <= self._next_number, (
            f"{numbers} of {self.num_seen} observations, the next is number {self._next_number}"
        )
        assert all(0 <= number < self._next_number for number in numbers), f"{numbers}, {self._next_number}"
        for (before, size), some in self._by_size.items():
            sizes = {(each.before.bit_length() // 2, each.size.bit_length() // 2) for each in some}
            assert sizes == {(before, size)}, f"observations of {sizes} are kept as of {(before, size)}"


class Costs:
    """Observations of one machine and model, and the curves that follow. One thread uses it."""

    def __init__(self) -> None:
        self._prefills = _Observed()
        self._loads = {tier: _Observed() for tier in LOADED_FROM}
        self._curves = Curves(prefill=None, loads={})

    def prefilled(self, start_tokens: int, num_tokens: int, seconds: float) -> None:
        """So many tokens were computed behind `start_tokens` others, alone, in so many seconds."""
        self._prefills.add(start_tokens, num_tokens, seconds)

    def loaded(self, tier: TierName, num_bytes: int, seconds: float, *, queued_bytes: int = 0) -> None:
        """So many bytes of KV came from this tier to the device, asked for behind others, in so many seconds."""
        self._loads[tier].add(queued_bytes, num_bytes, seconds)

    def num_loads(self, tier: TierName) -> int:
        """Loads of this tier that were observed, those that were kept included."""
        return self._loads[tier].num_seen

    def largest_load(self, tier: TierName) -> int:
        """Bytes of the largest of these."""
        return self._loads[tier].largest

    @property
    def curves(self) -> Curves:
        """As they are known now."""
        self.learn()
        return self._curves

    def learn(self) -> None:
        """Make the curves anew if enough has been observed since: some milliseconds then. Better while nobody waits."""
        due = [tier for tier, observed in self._loads.items() if observed.is_due]
        if due or self._prefills.is_due:
            loads = {**self._curves.loads, **{tier: _load_curve(self._loads[tier]) for tier in due}}
            prefill = _prefill_curve(self._prefills) if self._prefills.is_due else self._curves.prefill
            self._curves = Curves(prefill=prefill, loads=loads)

    # --- kept and told ------------------------------------------------------------------------------------------------

    def as_json(self) -> dict[str, Any]:
        """What `from_json` takes: the observations, oldest first, as [before, size, seconds]."""
        return {
            "version": VERSION,
            "prefill": _as_rows(self._prefills),
            "loads": {tier: _as_rows(observed) for tier, observed in self._loads.items()},
        }

    @classmethod
    def from_json(cls, kept: object, *, age_s: float = 0.0) -> "Costs":
        """What `as_json` answered `age_s` ago: the longer, the less it weighs beside what is seen from now on.

        Raises ValueError, with what is wrong, for anything else.
        """
        if not isinstance(kept, Mapping) or kept.get("version") != VERSION:
            version = kept.get("version") if isinstance(kept, Mapping) else None
            raise ValueError(f"costs of version {VERSION} are read, not of {version!r}")
        costs = cls()
        loads = kept.get("loads")
        if not isinstance(loads, Mapping) or not set(loads) <= set(LOADED_FROM):
            raise ValueError(f"costs must have loads by tier, of {', '.join(LOADED_FROM)}, not {loads!r}")
        _read_rows("prefill", kept.get("prefill"), costs._prefills)
        for tier, rows in loads.items():
            _read_rows(tier, rows, costs._loads[tier])
        for observed in (costs._prefills, *costs._loads.values()):
            observed.grow_older(int(min(age_s / _HALF_LIFE_S, _MOST_HALF_LIVES) * _HALF_LIFE))
        return costs

    def stats(self) -> dict[str, Any]:
        """The curves as they were last used, and the observations since the start; None for one that is not known.

        Any thread may ask.
        """
        curves = self._curves
        return {
            "prefill": _told(curves.prefill, self._prefills),
            "loads": {tier: _told(curves.loads.get(tier), self._loads[tier]) for tier in LOADED_FROM},
        }

    def check(self) -> None:
        """Raise AssertionError if the books do not agree."""
        for observed in (self._prefills, *self._loads.values()):
            observed.check()


def _prefill_curve(observed: _Observed) -> PrefillCurve:
    start, tokens, seconds, weights = observed.columns()
    terms = np.stack([np.ones_like(tokens), tokens, tokens * (start + tokens / 2)], axis=1)
    call_s, token_s, pair_s = fit(terms, seconds, weights, np.array([_DOUBT, 0.0, _DOUBT])).tolist()
    if not pair_s:
        token_s = max(token_s, float((seconds / tokens).min()) / _BEST_TIMES)
    return PrefillCurve(call_s=call_s, token_s=token_s, pair_s=pair_s)


def _load_curve(observed: _Observed) -> LoadCurve:
    queued, size, seconds, weights = observed.columns()
    terms = np.stack([np.ones_like(size), queued + size], axis=1)
    latency_s, byte_s = fit(terms, seconds, weights, np.array([_DOUBT, 0.0])).tolist()
    fastest = float((seconds / (queued + size)).min())
    return LoadCurve(latency_s=latency_s, byte_s=max(byte_s, fastest / _BEST_TIMES))


def _told(curve: PrefillCurve | LoadCurve | None, observed: _Observed) -> dict[str, Any] | None:
    return None if curve is None else {**asdict(curve), "observations": observed.num_seen}


def _as_rows(observed: _Observed) -> list[list[float]]:
    return [[each.before, each.size, each.seconds] for each in observed.in_order()]


def _read_rows(name: str, rows: object, observed: _Observed) -> None:
    if not isinstance(rows, Sequence):
        raise ValueError(f"observations of {name} must be a list, not {rows!r}")
    for row in rows:
        match row:
            case [int(before), int(size), float() | int() as seconds] if (
                before >= 0 and size > 0 and 0 < seconds < math.inf
            ):
                observed.add(before, size, seconds)
            case _:
                raise ValueError(f"an observation of {name} is [before, size, seconds], not {row!r}")
