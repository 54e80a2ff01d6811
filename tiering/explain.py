"""Why a prompt was not served further: what follows from an observation. Pure; any thread may call it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvstore.reasons import MissReason
from kvstore.reports import Difference, Explanation, Part, TierName
from tiering.fingerprints import fingerprints
from tiering.lease import NOT_CACHED
from tiering.observation import Observed
from tiering.radix import Tokens
from tiering.residency import Tier

_ON_ITS_WAY = "another request is computing or loading it"
_TOO_SHORT = "a prompt has to have more tokens than a block, {}, for any of it to be cached"
_ASKED_BY_OTHERS = "its tenant had more than its part, and another one needed the room"
_ASKED_ITSELF = "its tenant had more than its part, and needed the room itself"
_OTHERS = "the same tokens are cached for another tenant or salt"


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a prompt leaves the cached one that is most like it.

    asked: the prompt's tokens, int32 [tokens].   at_token: the first that differs.
    cached: what is cached from there on, int32, as far as was looked.
    """

    asked: Tokens
    at_token: int
    cached: Tokens


Describe = Callable[[Divergence], Difference]
"""Says what a divergence looks like."""


@dataclass(frozen=True, slots=True)
class Others:
    """Who else has the beginning of a prompt: how many of its blocks, and a sentence on who that is."""

    blocks: int
    sentence: str


@dataclass(frozen=True, slots=True)
class _Fate:
    """What became of a block: `Part` without a place."""

    tier: TierName | None = None
    reason: MissReason | None = None
    ago_s: float | None = None
    detail: str | None = None


def explain(
    observed: Observed,
    describe: Describe,
    *,
    found_in: NDArray[np.int8] | None = None,
    lost: Mapping[int, MissReason] | None = None,
    mark_shift: int = 31,
    elsewhere: Callable[[], Others | None] = lambda: None,
) -> Explanation:
    """What of the prompt is, or was, served from where, and why not the rest.

    `found_in`, `lost`: of a lease: the tiers that served, and what did not arrive, by position. `mark_shift`: see
    IndexConfig. `elsewhere`: asked where nothing of the prompt was ever seen: who else has it, if anybody.
    """
    fates = _matched(observed, found_in, lost or {})
    divergence = None
    if observed.stop is MissReason.CACHE_OFF:
        fates += [_Fate(reason=MissReason.CACHE_OFF)] * (observed.usable_blocks - len(fates))
    else:
        fates += _known(observed)
        beyond, divergence = _beyond(observed, (1 << mark_shift) - 1)
        if not len(fates) and beyond and beyond[0].reason is MissReason.NEVER_SEEN:
            beyond = _with_others(beyond, elsewhere())
        fates += beyond
    return Explanation(
        prompt_tokens=len(observed.tokens),
        block_tokens=observed.block_tokens,
        parts=_parts(fates, observed),
        difference=None if divergence is None else describe(divergence),
    )


def _matched(
    observed: Observed, found_in: NDArray[np.int8] | None, lost: Mapping[int, MissReason]
) -> list[_Fate]:
    """Blocks that were matched; some may not have arrived after all."""
    fates = []
    tiers = observed.tiers.tolist()
    for position, tier in enumerate(tiers):
        if (reason := lost.get(position)) is not None:
            fates.append(
                _Fate(Tier.DISK.label if reason is not MissReason.COPY_FAILED else Tier.HOST.label, reason)
            )
        elif found_in is not None and found_in[position] != NOT_CACHED:
            fates.append(_Fate(Tier(found_in[position]).label))
        elif tier < len(Tier):
            fates.append(_Fate(Tier(tier).label))
        else:
            fates.append(_Fate(Tier.DEVICE.label, detail=_ON_ITS_WAY))
    return fates


def _known(observed: Observed) -> list[_Fate]:
    """Blocks that the index knows, and that cannot be used."""
    first, end = len(observed.tiers), observed.known_blocks
    if first == end:
        return []
    assert observed.stop is not None, "a match ends for a reason"
    if observed.stop is not MissReason.ABSENT:
        tier = Tier.DISK.label if observed.stop in {MissReason.TIER_OFF, MissReason.OVERDUE} else None
        return [_Fate(tier, observed.stop)] * (end - first)
    [hole] = _departed(observed, first, first + 1)
    behind = [_Fate(reason=MissReason.BEHIND_A_LOSS)] * (end - first - 1)
    return [hole or _Fate(reason=MissReason.ABSENT), *behind]


def _beyond(observed: Observed, same: int) -> tuple[list[_Fate], Divergence | None]:
    """Blocks that the index does not know: they went, they differ from what is cached, or nobody computed them."""
    start, end = observed.known_blocks, observed.usable_blocks
    if start >= end:
        return [], None
    departed = _departed(observed, start, end)
    if observed.restoring:
        unknown = _Fate(reason=MissReason.NOT_RESTORED)
        return [fate or unknown for fate in departed], None
    never = _Fate(reason=MissReason.NEVER_SEEN)
    if departed[0] is not None or not observed.onwards:
        return [fate or never for fate in departed], None
    block_tokens = observed.block_tokens
    asked = observed.tokens[start * block_tokens :]
    cached = np.frombuffer(observed.onwards, dtype="<i4")
    if _equal_tokens(asked & same, cached & same) >= block_tokens:
        return [_Fate(reason=MissReason.OTHER_IDENTITY, detail=_OTHERS)] * (end - start), None
    num_equal = _equal_tokens(asked, cached)
    is_anothers = bool(((asked[:block_tokens] ^ cached[:block_tokens]) & ~same).any())
    if is_anothers or (not start and not num_equal):
        # what could not have been shared is no cause, and not for these eyes
        return [never] * (end - start), None
    at_token = start * block_tokens + num_equal
    divergence = Divergence(observed.tokens & same, at_token, cached[num_equal:] & same)
    return [_Fate(reason=MissReason.DIFFERS)] * (end - start), divergence


def _departed(observed: Observed, start: int, end: int) -> list[_Fate | None]:
    """What is remembered of the blocks at positions [start, end); None of those of which nothing is."""
    tokens = observed.tokens[: end * observed.block_tokens]
    chain = fingerprints(tokens, observed.block_tokens, observed.seed)
    gone = observed.departed.find(chain[start:])
    fates: list[_Fate | None] = [None] * (end - start)
    for at, position in enumerate(gone.positions.tolist()):
        tier = gone.tiers.item(at)
        reason = gone.reason(at)
        asker = _ASKED_BY_OTHERS if gone.by_others.item(at) else _ASKED_ITSELF
        fates[position] = _Fate(
            Tier(tier).label if tier < len(Tier) else None,
            reason,
            max(0.0, observed.now_s - gone.times_s.item(at)),
            asker if reason is MissReason.OVER_QUOTA else None,
        )
    return fates


def _with_others(beyond: list[_Fate], others: Others | None) -> list[_Fate]:
    if others is None:
        return beyond
    theirs = min(others.blocks, len(beyond))
    return [_Fate(reason=MissReason.OTHER_IDENTITY, detail=others.sentence)] * theirs + beyond[theirs:]


def _equal_tokens(asked: Tokens, cached: Tokens) -> int:
    """How many tokens both begin with."""
    length = min(len(asked), len(cached))
    different = np.flatnonzero(asked[:length] != cached[:length])
    return int(different[0]) if len(different) else length


def _parts(fates: list[_Fate], observed: Observed) -> tuple[Part, ...]:
    """Blocks with one fate run together, and then what is no whole block."""
    parts: list[Part] = []
    block_tokens, start = observed.block_tokens, 0
    for position in range(1, len(fates) + 1):
        if position == len(fates) or not _alike(fates[position], fates[start]):
            parts.append(_part(fates[start], start * block_tokens, position * block_tokens))
            start = position
    end = len(fates) * block_tokens
    if end < len(observed.tokens):
        detail = None if observed.usable_blocks else _TOO_SHORT.format(block_tokens)
        rest = _Fate(reason=MissReason.NOT_A_WHOLE_BLOCK, detail=detail)
        parts.append(_part(rest, end, len(observed.tokens)))
    return tuple(parts)


def _alike(one: _Fate, other: _Fate) -> bool:
    """Whether two blocks went the same way. Of what went one after the other the first time is told."""
    return (one.tier, one.reason, one.detail) == (other.tier, other.reason, other.detail)


def _part(fate: _Fate, start: int, end: int) -> Part:
    return Part(
        start_token=start,
        end_token=end,
        tier=fate.tier,
        reason=fate.reason,
        ago_s=fate.ago_s,
        detail=fate.detail,
    )
