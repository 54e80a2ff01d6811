"""How much of what is cached to load, and from where to compute, so that the first token comes soonest.

    prompt     |<------- of_blocks match ------->|<- never seen ->|
    tiers      | device |   host   |     disk    |
    loaded     |<--- num_blocks -->|                                the first so many blocks are used ...
    computed                       |<----------------------------->|  ... and all the rest, once they are there

Loading by the first k blocks costs in proportion to them, run by run of blocks of one tier. What computing the rest costs
falls ever faster as k grows, since later tokens attend to more. So within a run their sum is least at one of its ends: only
the ends of runs are candidates, and, where a part of the loading hides behind computing, the point at which the two are equal.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from kvstore.histogram import Histogram
from kvstore.reports import Decision, TierName
from tiering.costs import LOADED_FROM, Costs, Curves, PrefillCurve

LOADS: Final = ("always", "never", "auto")
"""What may be asked for: all of a match, nothing of what is not on the device, or as much as is best."""

_PROBE_EVERY: Final = 64
"""Decisions that leave a tier alone before one uses it all the same: else a tier that was slow once would never be seen again ..."""
_PROBE_WITHIN: Final = 2.0
"""... if that is thought to take at most so many times as long: a sixty-fourth of the requests for at most double the time."""
_LEAST_LOADS: Final = 8
"""Of a tier, before it is left alone: the first few may all have been small, or cold, and what is not loaded teaches nothing."""
_MOST_TIMES_LARGER: Final = 4
"""... than any load of it that was seen: what is larger is loaded once, or the time to the first byte would be taken for slowness."""
_PATIENCE: Final = 2.0
"""What is loaded is waited for as long as computing it takes, but at least so many times as long as loading it should take ..."""
_LEAST_DEADLINE_S: Final = 0.05
"""... and as this: an engine looks at the clock between two steps, and on a busy machine a thread waits for the processor so long."""
_ERRORS: Final = (0.05, 0.1, 0.2, 0.35, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Bounds of the histogram of errors, as parts of what was predicted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """What the index found of a prompt. Raises ValueError for what cannot be.

    runs: (tier, blocks) in the order of the prompt, each block where it is nearest.   block_bytes: of KV, whatever the disk stores.
    queued_bytes: by tier, what was asked for before and has not come.   overlap: the part, 0 to 1, of the shorter of loading
    and computing that hides behind the longer.
    """

    runs: tuple[tuple[TierName, int], ...]
    prompt_tokens: int
    block_tokens: int
    block_bytes: int
    queued_bytes: Mapping[TierName, int] = field(default_factory=dict)
    overlap: float = 0.0

    def __post_init__(self) -> None:
        if any(num_blocks < 0 for _, num_blocks in self.runs):
            raise ValueError(f"a run has blocks or none, not {self.runs}")
        if self.num_blocks * self.block_tokens > self.prompt_tokens:
            raise ValueError(
                f"{self.num_blocks} blocks of {self.block_tokens} are no part of {self.prompt_tokens} tokens"
            )
        if not 0 <= self.overlap <= 1:
            raise ValueError(f"overlap must be between 0 and 1, got {self.overlap}")

    @property
    def num_blocks(self) -> int:
        """All that match."""
        return sum(num_blocks for _, num_blocks in self.runs)

    @property
    def num_on_device(self) -> int:
        """Those that cost nothing to use: the first ones, as far as the device has them."""
        tier, num_blocks = self.runs[0] if self.runs else ("device", 0)
        return num_blocks if tier == "device" else 0


class Predicted:
    """What a match would take with its first `num_blocks` blocks, by curves that are known."""

    def __init__(self, match: Match, prefill: PrefillCurve, curves: Curves) -> None:
        """A tier without a curve is taken to cost nothing: it is used, and then it has one."""
        self._match, self._prefill, self._loads = match, prefill, curves.loads

    def load_s(self, num_blocks: int) -> float:
        """To load them, tier after tier."""
        tiers: dict[TierName, int] = {}
        left = num_blocks
        for tier, of_tier in self._match.runs:
            tiers[tier] = tiers.get(tier, 0) + min(left, of_tier) * self._match.block_bytes
            left -= min(left, of_tier)
        return sum(
            self._loads[tier].seconds(num_bytes, self._match.queued_bytes.get(tier, 0))
            for tier, num_bytes in tiers.items()
            if tier in self._loads
        )

    def prefill_s(self, num_blocks: int) -> float:
        """To compute all that follows them."""
        start = num_blocks * self._match.block_tokens
        return self._prefill.seconds(start, self._match.prompt_tokens - start)

    def ttft_s(self, num_blocks: int) -> float:
        """Until the first token."""
        load_s, prefill_s = self.load_s(num_blocks), self.prefill_s(num_blocks)
        return load_s + prefill_s - self._match.overlap * min(load_s, prefill_s)

    def best(self) -> int:
        """How many blocks to use; of equals the most, as what is loaded need not be written again."""
        return min(self._candidates(), key=lambda num_blocks: (self.ttft_s(num_blocks), -num_blocks))

    def _candidates(self) -> list[int]:
        ends = [self._match.num_on_device]
        for _, num_blocks in self._match.runs[1 if self._match.num_on_device else 0 :]:
            ends.append(ends[-1] + num_blocks)
        if self._match.overlap:
            crossing = self._first(lambda num_blocks: self.load_s(num_blocks) >= self.prefill_s(num_blocks))
            ends += [num_blocks for num_blocks in (crossing - 1, crossing) if num_blocks >= ends[0]]
        return ends

    def _first(self, is_so: Callable[[int], bool]) -> int:
        """The least number of blocks of which it is so, or all; once it is, it stays so."""
        low, high = self._match.num_on_device, self._match.num_blocks
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if is_so(middle) else (middle + 1, high)
        return low


def choose(match: Match, curves: Curves, *, believed: Collection[TierName] = LOADED_FROM) -> Decision:
    """The decision by these curves. Without one of prefilling everything is loaded.

    `believed`: the tiers that may be left alone because of what their curves say.
    """
    if curves.prefill is None:
        return _with_queue(match, Decision(num_blocks=match.num_blocks, of_blocks=match.num_blocks))
    loads = {tier: curve for tier, curve in curves.loads.items() if tier in believed}
    num_blocks = Predicted(match, curves.prefill, replace(curves, loads=loads)).best()
    return _decision(match, Predicted(match, curves.prefill, curves), num_blocks)


def _decision(
    match: Match, predicted: Predicted, num_blocks: int, probes: TierName | None = None
) -> Decision:
    """With so many blocks. What is loaded is waited for as long as computing it takes, or twice as long as it should take itself.

    Whatever the disk does, the first token then comes within three times the time that loading nothing takes, if loading was
    chosen for being faster. (Who rents skis until the rent has come to their price pays double at most; but reads come in few
    large parts, and one that is nearly over is not to be given up for a little noise.)
    """
    none, prefill_s, load_s = (
        match.num_on_device,
        predicted.prefill_s(num_blocks),
        predicted.load_s(num_blocks),
    )
    saved_s = predicted.prefill_s(none) - prefill_s
    decision = Decision(
        num_blocks=num_blocks,
        of_blocks=match.num_blocks,
        load_s=load_s,
        prefill_s=prefill_s,
        ttft_s=predicted.ttft_s(num_blocks),
        always_s=predicted.ttft_s(match.num_blocks),
        never_s=predicted.ttft_s(none),
        deadline_s=max(saved_s, _PATIENCE * load_s, _LEAST_DEADLINE_S) if num_blocks > none else None,
        probes=probes,
    )
    return _with_queue(match, decision)


def _with_queue(match: Match, decision: Decision) -> Decision:
    queued = match.queued_bytes.get("disk", 0)
    return replace(decision, queued_bytes=queued) if queued else decision


def _ends(match: Match) -> list[tuple[TierName, int]]:
    """Of each tier below the device where its last block ends."""
    ends: dict[TierName, int] = {}
    end = 0
    for tier, num_blocks in match.runs:
        end += num_blocks
        if tier != "device" and num_blocks:
            ends[tier] = end
    return list(ends.items())


class Chooser:
    """Chooses for one lookup after the other, and keeps count of how it did. One thread uses it."""

    def __init__(self, costs: Costs, *, probe_every: int = _PROBE_EVERY) -> None:
        """`costs`: told by others of what things took. `probe_every`: decisions against a tier before it is tried again."""
        self.costs = costs
        self._probe_every = probe_every
        self._left_alone: dict[TierName, int] = {}
        self._counts = {"all": 0, "some": 0, "none": 0, "uncalibrated": 0}
        self._probes = 0
        self._blocks = {"loaded": 0, "computed": 0}
        self._ended = 0
        self._num_late = 0
        self._predicted_s = self._took_s = 0.0
        self._errors = Histogram(_ERRORS)

    def choose(self, match: Match) -> Decision:
        """What to do with this match. Counts for nothing until it is `taken`."""
        curves = self.costs.curves
        decision = choose(match, curves, believed=[tier for tier in LOADED_FROM if self._knows(tier, match)])
        if decision.ttft_s is None or curves.prefill is None:
            return decision
        return self._probing(match, Predicted(match, curves.prefill, curves), decision)

    def _knows(self, tier: TierName, match: Match) -> bool:
        """Whether enough loads of this tier were seen to leave it alone, with as much as this."""
        num_bytes = match.block_bytes * sum(num_blocks for each, num_blocks in match.runs if each == tier)
        seen = self.costs.num_loads(tier) >= _LEAST_LOADS
        return seen and num_bytes <= _MOST_TIMES_LARGER * self.costs.largest_load(tier)

    def _probing(self, match: Match, predicted: Predicted, decision: Decision) -> Decision:
        """The decision, or, of a tier that it leaves alone as all did lately, one that uses it."""
        assert decision.ttft_s is not None, "there are curves"
        for tier, end in _ends(match):
            if end <= decision.num_blocks or self._left_alone.get(tier, 0) + 1 < self._probe_every:
                continue
            if predicted.ttft_s(end) <= _PROBE_WITHIN * decision.ttft_s:
                return _decision(match, predicted, end, probes=tier)
        return decision

    def taken(self, match: Match, decision: Decision) -> None:
        """The decision is what happens now."""
        none = match.num_on_device
        if decision.of_blocks == none:
            return  # there was nothing to choose
        kind = (
            "all"
            if decision.num_blocks == decision.of_blocks
            else "some"
            if decision.num_blocks > none
            else "none"
        )
        self._counts["uncalibrated" if decision.ttft_s is None else kind] += 1
        self._probes += decision.probes is not None
        self._blocks["loaded"] += decision.num_blocks - none
        self._blocks["computed"] += decision.of_blocks - decision.num_blocks
        for tier, end in _ends(match):
            self._left_alone[tier] = 0 if end <= decision.num_blocks else self._left_alone.get(tier, 0) + 1

    def took(
        self,
        decision: Decision | None,
        start_tokens: int,
        num_tokens: int,
        prefill_s: float,
        loaded: Mapping[TierName, int],
        load_s: float,
    ) -> Decision | None:
        """A prompt is computed: so many tokens behind `start_tokens` in `prefill_s`, after bytes by tier were loaded in `load_s`.

        As it goes here, other requests' work included. Of what several tiers brought together nothing can be learned. Answers
        the decision with what it took.
        """
        self.costs.prefilled(start_tokens, num_tokens, prefill_s)
        below = {tier: num_bytes for tier, num_bytes in loaded.items() if tier != "device" and num_bytes}
        if len(below) == 1:
            [(tier, num_bytes)] = below.items()
            queued = decision.queued_bytes if decision is not None and tier == "disk" else 0
            self.costs.loaded(tier, num_bytes, load_s, queued_bytes=queued)
        ended = None if decision is None else self.ended(decision, load_s + prefill_s)
        self.costs.learn()  # now, and not when the next prompt waits for its decision
        return ended

    def came_late(self, num_bytes: int, queued_bytes: int, took_s: float) -> None:
        """So many bytes came from disk behind others in `took_s`, and nobody waited for all of them any more."""
        self._num_late += 1
        self.costs.loaded("disk", num_bytes, took_s, queued_bytes=queued_bytes)
        self.costs.learn()

    def ended(self, decision: Decision, took_s: float) -> Decision:
        """The first token is there, `took_s` after loading began. Answers the decision with that, and with its error."""
        if not decision.ttft_s:
            return replace(decision, took_s=took_s)
        error = took_s / decision.ttft_s - 1
        self._ended += 1
        self._predicted_s += decision.ttft_s
        self._took_s += took_s
        self._errors.add(abs(error))
        return replace(decision, took_s=took_s, error=error)

    def stats(self) -> dict[str, Any]:
        """Decisions by what they use, blocks by what became of them, seconds predicted and taken, errors, the curves."""
        errors = self._errors.figures()
        return {
            "decisions": dict(self._counts),
            "probes": self._probes,
            "blocks": dict(self._blocks),
            "ended": self._ended,
            "predicted_s": self._predicted_s,
            "took_s": self._took_s,
            "errors": errors,
            "mean_error": errors["sum"] / self._ended if self._ended else None,
            "came_late": self._num_late,
            "curves": self.costs.stats(),
        }

    def check(self) -> None:
        """Raise AssertionError if the books do not agree."""
        self.costs.check()
        chosen = sum(self._counts.values())
        assert self._probes <= chosen, f"{self._probes} probes among {chosen} decisions"
        assert all(0 <= count <= chosen for count in self._left_alone.values()), (
            f"{self._left_alone} of {chosen}"
        )
