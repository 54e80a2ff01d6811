"""What takes how long on the virtual clock of a simulation: so much a block, or as curves say; and who chooses there by these."""

from dataclasses import dataclass, fields
from typing import Final, Self

import numpy as np

from kvstore.reports import Decision, TierName
from tiering.costs import Costs, Curves, LoadCurve, PrefillCurve
from tiering.decision import Chooser, Match, choose
from tiering.moves import Demote, Promote, Read, Write

_BEHIND: Final[dict[type, tuple[TierName, TierName | None]]] = {
    Promote: ("host", None),
    Demote: ("host", None),
    Read: ("disk", "host"),
    Write: ("disk", "host"),
}
"""Whose curve tells of a move, and whose of what is beside it: from disk a block comes by way of host memory."""

_SECONDS_OF: Final[dict[type, str]] = {
    Demote: "demote_s",
    Promote: "promote_s",
    Read: "read_s",
    Write: "write_s",
}

ASSUMED_TOKEN_BYTES: Final = 131_072
ASSUMED: Final = Curves(
    prefill=PrefillCurve(call_s=0.02, token_s=5.3e-5, pair_s=1.75e-9),
    loads={
        "host": LoadCurve(latency_s=1e-3, byte_s=1 / 25e9),
        "disk": LoadCurve(latency_s=2e-3, byte_s=1 / 3.5e9),
    },
)
"""Where nothing was measured: a model of 8 billion parameters, 2 * 8e9 operations a token and 4 * 32 * 4,096 a pair, at 300e12 a
second; PCIe at 25 GB/s; one drive at 3.5 GB/s."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockTimes:
    """Seconds that one block takes, by what is done to it. Nothing, unless it is given."""

    compute_s: float = 0.0
    demote_s: float = 0.0
    promote_s: float = 0.0
    read_s: float = 0.0
    write_s: float = 0.0

    def __post_init__(self) -> None:
        for each in fields(self):
            if not 0 <= getattr(self, each.name) < np.inf:
                raise ValueError(f"{each.name} must be a time of at least 0, not {getattr(self, each.name)}")

    def compute(self, start: int, num_blocks: int) -> float:  # noqa: ARG002 - what is before them makes no difference here
        """Seconds to compute so many blocks behind `start` others."""
        return num_blocks * self.compute_s

    def move(self, kind: type, num_blocks: int, *, is_first: bool) -> float:  # noqa: ARG002 - nothing has a latency here
        """Seconds of a move, `is_first` if it does not follow another of its kind at once."""
        each_s: float = getattr(self, _SECONDS_OF[kind])
        return num_blocks * each_s


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveTimes:
    """Seconds by curves: of computing, and of loading from each tier. What is copied down takes what loading it would."""

    curves: Curves
    """In blocks, where curves have tokens and bytes: see `of`."""

    @classmethod
    def of(cls, curves: Curves, *, block_tokens: int, token_bytes: int) -> Self:
        """For blocks of so many tokens, each of so many bytes of KV. ValueError without a curve of computing, or of less than a token."""
        if min(block_tokens, token_bytes) < 1:
            raise ValueError(f"a block has at least a token and a byte, not {block_tokens}, {token_bytes}")
        if (known := curves.prefill) is None:
            raise ValueError("nothing was measured of computing")
        prefill = PrefillCurve(
            call_s=known.call_s, token_s=known.token_s * block_tokens, pair_s=known.pair_s * block_tokens**2
        )
        block_bytes = block_tokens * token_bytes
        loads = {
            tier: LoadCurve(latency_s=curve.latency_s, byte_s=curve.byte_s * block_bytes)
            for tier, curve in curves.loads.items()
        }
        return cls(curves=Curves(prefill=prefill, loads=loads))

    def check_tiers(self, tiers: list[TierName]) -> None:
        """Raise ValueError unless there is a curve for loading from each of these tiers."""
        if missing := [tier for tier in tiers if tier not in self.curves.loads]:
            raise ValueError(f"nothing was measured of loading from {' and '.join(missing)}")

    def compute(self, start: int, num_blocks: int) -> float:
        """See BlockTimes."""
        assert self.curves.prefill is not None, "`of` asks for it"
        return self.curves.prefill.seconds(start, num_blocks)

    def move(self, kind: type, num_blocks: int, *, is_first: bool) -> float:
        """See BlockTimes. A latency is paid once for moves that follow each other."""
        whole, part = _BEHIND[kind]
        seconds = self._load(whole, num_blocks, is_first=is_first)
        return (
            seconds if part is None else max(0.0, seconds - self._load(part, num_blocks, is_first=is_first))
        )

    def _load(self, tier: TierName, num_blocks: int, *, is_first: bool) -> float:
        curve = self.curves.loads[tier]
        return curve.seconds(num_blocks) - (0.0 if is_first else curve.latency_s)


class Knowing(Chooser):
    """Knows the curves from the beginning, and that they are true: it tries nothing out."""

    def __init__(self, times: CurveTimes) -> None:
        super().__init__(Costs())
        self._curves = times.curves

    def choose(self, match: Match) -> Decision:
        """See Chooser."""
        return choose(match, self._curves)
