"""A trace through the core: the index, its plans and its moves, on a virtual clock and without a byte of KV."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvstore.block import KEY_BYTES
from kvstore.store import HIT
from tiering.costs import LOADED_FROM
from tiering.decision import LOADS
from tiering.durations import BlockTimes, CurveTimes, Knowing
from tiering.events import NoEvents
from tiering.index import Index
from tiering.index_config import IndexConfig
from tiering.keeping import Told, admission_named
from tiering.lease import Lease
from tiering.moves import Answer, Copied, Demote, Forget, HasRead, Promote, Read, Touch, Write, Written
from tiering.policies import policy_named
from tiering.policies.policy import PolicyError
from tiering.residency import Tier
from tiering.trace import TraceRequest

_NO_DEADLINE_S: Final = 1e12
"""What is given a time takes it: nothing here hangs."""

_TOKEN: Final = np.dtype("<i4")
_MANY_KEYS: Final = 4096
"""Made at once."""

_TO: Final[dict[type, int]] = {
    Demote: int(Tier.HOST),
    Read: int(Tier.HOST),
    Promote: int(Tier.DEVICE),
    Write: int(Tier.DISK),
}
"""Where moves make their copies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulationConfig:
    """What is simulated. Sizes are blocks, and 0 is no such tier. Raises ValueError for what cannot work."""

    device_blocks: int
    host_blocks: int = 0
    disk_blocks: int = 0
    policy: str = "lru"
    """A name of tiering.policies, or package.module:Class."""
    admission: str = "adaptive"
    """A name of tiering.keeping, or package.module:Class."""
    times: BlockTimes | CurveTimes = field(default_factory=BlockTimes)
    load: str = "always"
    """As an engine's: "always", "never", or "auto", which chooses by curves."""

    def __post_init__(self) -> None:
        if self.load not in LOADS:
            raise ValueError(f"load is one of {', '.join(LOADS)}, not {self.load!r}")
        if self.load == "auto" and not isinstance(self.times, CurveTimes):
            raise ValueError("load is auto, which chooses by curves, and there are none")
        if self.device_blocks < 1:
            raise ValueError(f"the device must hold at least one block, not {self.device_blocks}")
        if min(self.host_blocks, self.disk_blocks) < 0:
            raise ValueError(f"a tier holds at least 0 blocks: {self.host_blocks}, {self.disk_blocks}")
        if self.disk_blocks and not self.host_blocks:
            raise ValueError("a disk needs host memory to read into: host_blocks is 0")
        policy_named(self.policy)
        admission_named(self.admission)

        if isinstance(self.times, CurveTimes):
            sizes = (self.host_blocks, self.disk_blocks)
            self.times.check_tiers([tier for tier, size in zip(LOADED_FROM, sizes, strict=True) if size])

    @property
    def capacity_blocks(self) -> int:
        """Of all tiers together."""
        return self.device_blocks + self.host_blocks + self.disk_blocks

    @property
    def index(self) -> IndexConfig:
        """The core's configuration: a block is one token, and takes one byte of disk."""
        return IndexConfig(
            block_tokens=1,
            device_slots=self.device_blocks,
            host_slots=self.host_blocks,
            disk_bytes=self.disk_blocks,
            record_bytes=1,
            policy=self.policy,
            explains=False,
            admission=self.admission,
            loads=self.load != "never",
            io_deadline_s=_NO_DEADLINE_S,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of a trace."""

    num_requests: int
    num_blocks: int
    """Of all prompts, whole blocks."""
    hits_by_tier: dict[str, int]
    """Blocks that were found, by the nearest tier that had them."""
    writes_by_tier: dict[str, int]
    """Copies that were made: on the device of blocks computed and promoted, in host memory of blocks demoted and read."""
    num_computed: int
    """Blocks that were computed and kept: who writes everything writes so many to disk."""
    ttft_s: list[float] = field(default_factory=list)
    """By request, from arrival to the last of the prompt computed; empty where nothing takes time."""

    @property
    def hits(self) -> int:
        """In all tiers."""
        return sum(self.hits_by_tier.values())

    @property
    def hit_rate(self) -> float:
        """Of all blocks, those found; 0 without blocks."""
        return self.hits / self.num_blocks if self.num_blocks else 0.0


class Simulation:
    """Drives an Index as TieredCache does. Requests are served one at a time, in their order; moves go on beside them.

    A prompt's blocks are all matched and all cached, the last one too, without a place to decode into; of a prompt that
    is longer than the device its first blocks.
    """

    def __init__(self, config: SimulationConfig) -> None:
        self._config, self._times = config, config.times
        self._takes_time = config.times != BlockTimes()
        self._chooses, self._tells = config.load == "auto", config.admission != "all"
        chooser = Knowing(config.times) if isinstance(config.times, CurveTimes) and self._chooses else None
        self._index = Index(
            config.index,
            bytes(KEY_BYTES),
            block_bytes=1,
            events=NoEvents(),
            chooser=chooser,
            seed=0,  # the same each time
        )
        self._now_s = 0.0
        self._due: list[tuple[float, int, Answer]] = []
        """A heap of answers, and when they are given."""
        self._free_s: defaultdict[type, float] = defaultdict(float)
        """When what makes copies of a kind, one after the other, will have made those that were asked for."""
        self._answers: dict[type, Callable[[Any], Answer]] = {
            Demote: self._copied,
            Promote: self._copied,
            Read: self._read,
            Write: self._written,
        }
        self._writes = [0] * len(Tier)
        self._sizes: NDArray[np.int64] = np.ones(config.index.blocks_per_write, dtype=np.int64)
        self._keys = memoryview(b"")
        """Those that come next; they count up."""
        self._num_keys = self._num_requests = self._num_blocks = self._num_computed = 0
        self._ttft_s: list[float] = []

    def run(self, requests: Iterable[TraceRequest]) -> Outcome:
        """Serve these requests, after those that were served before. Raises PolicyError if the policy breaks its contract."""
        for request in requests:
            self._serve(request)
        self._rest()
        hits = self._index.stats()["lookups"]["hit_blocks"]
        sizes = (self._config.device_blocks, self._config.host_blocks, self._config.disk_blocks)
        tiers = [tier for tier, size in zip(Tier, sizes, strict=True) if size]
        return Outcome(
            num_requests=self._num_requests,
            num_blocks=self._num_blocks,
            hits_by_tier={tier.label: hits[tier.label] for tier in tiers},
            writes_by_tier={tier.label: self._writes[tier] for tier in tiers},
            num_computed=self._num_computed,
            ttft_s=self._ttft_s,
        )

    def check(self) -> None:
        """See Index.check."""
        self._index.check()

    # --- requests -------------------------------------------------------------------------------------------------

    def _serve(self, request: TraceRequest) -> None:
        self._num_requests += 1
        self._num_blocks += len(request.blocks)
        if not request.blocks:
            return
        self._until(request.at_s)
        tokens = np.array(request.blocks[: self._config.device_blocks], dtype=_TOKEN)
        lease = self._admit(tokens)
        while lease.num_loading:
            self._wait()
        for start, end in lease.gaps(len(tokens)):
            self._until(self._now_s + self._times.compute(start, end - start))
            self._index.publish(lease, tokens, start, end)
            self._num_computed += end - start
            self._writes[_TO[Promote]] += end - start
        if self._takes_time:
            self._ttft_s.append(self._now_s - request.at_s)
        told = None
        if self._tells:
            told = Told(output_tokens=request.output_tokens, kind=request.kind, hints=request.hints)
        self._index.release(lease, told)
        if self._index.has_work:
            self._start_moves()

    def _admit(self, tokens: np.ndarray[tuple[int], np.dtype[np.int32]]) -> Lease:
        while True:
            outcome = self._index.admit(tokens, len(tokens), chunk_blocks=len(tokens), compute_last=False)
            if isinstance(outcome, Lease):
                if self._index.has_work:
                    self._start_moves()
                return outcome
            self._start_moves()
            self._wait()

    # --- moves ----------------------------------------------------------------------------------------------------

    def _start_moves(self) -> None:
        if not self._config.host_blocks:
            return  # there is nowhere to move anything to
        for move in self._index.plan(self._now_s):
            if (answer := self._answers.get(type(move))) is not None:
                self._start(move, answer(move))
            else:  # nobody waits for these
                assert isinstance(move, (Forget, Touch)), f"one request needs no {type(move).__name__}"

    def _start(self, move: Any, answer: Answer) -> None:
        """It will have gone well. `move`: one that is answered."""
        kind, num_blocks = type(move), len(move.ids)
        self._writes[_TO[kind]] += num_blocks
        end_s = self._now_s
        if self._takes_time:
            free_s = self._free_s[kind]
            took_s = self._times.move(kind, num_blocks, is_first=free_s <= end_s)
            self._free_s[kind] = end_s = max(end_s, free_s) + took_s
        heappush(self._due, (end_s, move.number, answer))

    def _copied(self, move: Demote | Promote) -> Copied:
        return Copied(move.number)

    def _read(self, move: Read) -> HasRead:
        return HasRead(move.number, (HIT,) * len(move.ids))

    def _written(self, move: Write) -> Written:
        """It has succeeded, with keys that no other block has: nothing is found by them here."""
        num_bytes = len(move.unkeyed) * KEY_BYTES
        if len(self._keys) < num_bytes:
            num = max(_MANY_KEYS, len(move.unkeyed))
            first = self._num_keys - len(self._keys) // KEY_BYTES
            rows = np.zeros((num, KEY_BYTES // 8), dtype="<u8")
            rows[:, 0] = np.arange(first, first + num)
            self._num_keys = first + num
            self._keys = memoryview(rows.tobytes())
        keys, self._keys = bytes(self._keys[:num_bytes]), self._keys[num_bytes:]
        return Written(move.number, self._sizes[: len(move.ids)], keys)

    # --- time -----------------------------------------------------------------------------------------------------

    def _until(self, time_s: float) -> None:
        """Go on to this time, if it is to come, and give the answers that are due by then."""
        while self._due and self._due[0][0] <= time_s:
            self._wait()
        self._at(time_s)

    def _at(self, time_s: float) -> None:
        if time_s > self._now_s:
            self._now_s = time_s
            self._index.at(time_s)

    def _wait(self) -> None:
        """Go on to when the next moves are over, and answer these."""
        if not self._due and policy_named(self._config.policy) is not None:
            raise PolicyError(f"the policy {self._config.policy} says that no block may go, and some may")
        assert self._due, "a request waits, and nothing is on its way"
        next_s = self._due[0][0]
        if self._chooses and (deadline_s := self._index.deadline_s()) is not None:
            next_s = min(next_s, deadline_s)
        self._at(next_s)
        while self._due and self._due[0][0] <= self._now_s:
            self._index.answer(heappop(self._due)[2])
        self._start_moves()

    def _rest(self) -> None:
        """Let all that was asked for end."""
        while self._due:
            self._wait()
