"""How long computing and loading take in a simulation, by curves; and who decides between them there."""

from dataclasses import dataclass
from typing import Final

from kvstore.reports import Decision, TierName
from tiering.costs import Costs, Curves, LoadCurve, PrefillCurve
from tiering.decision import Chooser, Match, choose

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
class Pace:
    """Seconds of what a simulation does with blocks. Raises ValueError without a curve of prefilling."""

    curves: Curves
    """A block is one token of one byte: see `of`."""

    def __post_init__(self) -> None:
        if self.curves.prefill is None:
            raise ValueError("nothing is known of what computing takes: there is no observation of prefill")

    @classmethod
    def of(cls, curves: Curves, *, block_tokens: int, token_bytes: int) -> "Pace":
        """By curves over tokens and bytes of KV."""
        prefill = curves.prefill and PrefillCurve(
            call_s=curves.prefill.call_s,
            token_s=curves.prefill.token_s * block_tokens,
            pair_s=curves.prefill.pair_s * block_tokens**2,
        )
        block_bytes = block_tokens * token_bytes
        loads = {
            tier: LoadCurve(latency_s=curve.latency_s, byte_s=curve.byte_s * block_bytes)
            for tier, curve in curves.loads.items()
        }
        return cls(curves=Curves(prefill=prefill, loads=loads))

    def compute_s(self, start_blocks: int, num_blocks: int) -> float:
        """To compute so many blocks behind others."""
        assert self.curves.prefill is not None, "it was looked at"
        return self.curves.prefill.seconds(start_blocks, num_blocks)

    def promote_s(self, num_blocks: int, *, follows: bool) -> float:
        """To copy from host memory to the device. What follows other blocks need not wait for the first byte."""
        return self._load_s("host", num_blocks, follows=follows)

    def read_s(self, num_blocks: int, *, follows: bool) -> float:
        """To read from disk: what a load from there takes, less the copy up that follows."""
        both_s = self._load_s("disk", num_blocks, follows=follows)
        return max(0.0, both_s - self._load_s("host", num_blocks, follows=follows))

    def _load_s(self, tier: TierName, num_blocks: int, *, follows: bool) -> float:
        if (curve := self.curves.loads.get(tier)) is None:
            return 0.0
        return curve.seconds(num_blocks) - (curve.latency_s if follows else 0.0)


class Paced(Chooser):
    """Knows the curves from the beginning, and that they are true: it tries nothing out."""

    def __init__(self, pace: Pace) -> None:
        super().__init__(Costs())
        self._curves = pace.curves

    def choose(self, match: Match) -> Decision:
        """See Chooser."""
        return choose(match, self._curves)
