"""What a user may set for an engine: one flat configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from kvstore.cores import num_cores
from kvstore.store import COMPRESSIONS, DURABILITIES, Compression, Durability
from tiering.decision import LOADS
from tiering.keeping import admission_named
from tiering.policies import policy_named

from .params import check_number, check_whole
from .sizes import available_memory_bytes, parse_bytes
from .tenants import checked_quotas

DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")
ATTENTIONS = ("auto", "sdpa", "flashinfer")

TILE_TOKENS = 128
"""Attention calls of a prefill end at absolute multiples of this; so must chunks in deterministic mode."""

MIN_HOST_SLOTS = 8
"""Blocks of host memory below which a disk tier would read in drops."""

_GIB = 2**30
# With "auto" the CPU pool stays small: it is touched at start, and costs the machine that memory at once.
_CPU_POOL_SHARE, _CPU_POOL_LIMIT_BYTES = 0.15, 1 * _GIB
_HOST_SHARE, _HOST_LIMIT_BYTES = 0.25, 16 * _GIB
# More of them wait for each other in Python more than they gain.
_MOST_READ_THREADS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Settings of one engine. Every field has a default; sizes are bytes or strings such as "64MiB".

    After construction sizes are ints, or "auto" where the machine decides (see `resolve`).

    device: where the model runs; "auto" is "cuda" where torch finds a GPU, else "cpu".
    dtype: of the weights and the computing; "auto" is float32 on the CPU (bfloat16 computes several times
        slower there) and bfloat16 on CUDA.
    kv_dtype: of the cached keys and values; "auto" is bfloat16, half of float32 at no visible loss.
    attention: "flashinfer" computes it by FlashInfer's kernels, on CUDA in bfloat16 or float16 with kv_dtype the same;
        "sdpa" by torch's scaled_dot_product_attention, everywhere, save that on the CPU prompts attend by a kernel of our own where it has
        one. "auto" is "flashinfer" where it is installed and agrees with "sdpa" when the engine starts, and "sdpa" in deterministic mode;
        `Engine.stats` says which, and why.
    block_tokens: tokens in one block, 16 or 32: smaller shares more, larger has less bookkeeping.
    device_bytes: of the block pool beside the model; "auto" is a share of what is free: 15 % and at most 1 GiB on the CPU,
        device_memory_fraction on CUDA.
    device_memory_fraction: on CUDA, of what is left of the GPU's memory beside the model and what the largest step takes,
        which is measured at start. What the default leaves is for FlashInfer's workspace, gaps between torch's
        allocations, kernels that CUDA loads later, and whoever else uses the GPU.
    host_bytes: of the second tier; "auto" is a quarter of the memory that the control group leaves, at most
        16 GiB; 0 switches the tier off.
    host_clean_share: of host memory, what is kept free or on disk as well, so that blocks leave the device without waiting.
        More of it writes earlier, also what would never have left; less of it drops more when much comes at once.
    policy: which blocks the device and host memory give up first: "lru", "fifo", "s3fifo", "arc", "recompute-cost", or a
        class of your own as "package.module:Class" (docs/writing-a-policy.md). `kvtide simulate` says what each would find.
    admission: what is kept where there is not room for all: "adaptive" learns which blocks are asked for again, lets the others
        go first from the device and does not copy them down (docs/keeping.md); "all" copies everything; or a class of your own
        as "package.module:Class".
    disk_path: directory of the third tier; None (the default) switches it off.
    disk_bytes: bound of the files below disk_path, LMDB's overhead included; records may take four fifths of it. Set
        apart are damaged files and records, kept to be looked at: one set of files, and 64 MiB of records; and the records of
        named caches, a sixty-fourth at most.
    disk_bytes_a_day: the most that is written to disk in a day, for media that wear out; an hour's worth may be saved up. What
        is written by hand, or when the engine closes, counts but does not wait. None: no limit.
    disk_min_free_bytes: space on that file system which the tier never takes.
    disk_durability: "relaxed" syncs a few seconds after a write; a loss of power before that may cost the disk tier.
        "strict" syncs each write before it counts as done (docs/durability.md).
    disk_compression: "on" encodes blocks on disk without loss, where that makes them smaller: 1.5 times in bfloat16; "off" never.
        "auto" does unless the disk is measured to be so fast that reads would become slower by it (docs/durability.md).
    disk_key_file: a file with the key that blocks on disk are encrypted with, 32 bytes or 64 hexadecimal digits; None
        leaves them readable. It must not lie on the disk that it is to protect (docs/privacy.md).
    disk_read_threads: while one waits for the disk another decompresses. "auto" is one more than this process may use
        cores, 2 to 8: no more decompress at once than there are cores, and the disk is not left idle when one ends.
    disk_queue_bytes: of blocks, in host memory, that may wait to be written at the same time, in writes of at most half of it,
        16 MiB or 64 blocks (docs/adr/0025). What must leave host memory while as much waits is dropped, and counted; loads never
        wait for writes.
    restore_wait_s: for how long at most a start waits until it knows what the disk holds. What takes longer goes on while
        requests run. 1 s: some 200,000 blocks are known by then.
    disk_deadline_s: a read from disk that takes longer is waited for no more: the blocks are computed. The slowest
        honest read, a few megabytes behind others, takes a fraction of it.
    ttl_s: blocks that nobody has used for so many seconds are forgotten in every tier, at the start also other models'
        in disk_path; it goes on over restarts (docs/durability.md). None: they go only for want of room.
    held_share: of each tier, what named caches and `Engine.keep` may hold, so that requests find room (docs/retention.md).
    max_names: named caches, of all tenants together: each has its prompt's token ids in memory and on disk.
    tenant_quotas: by tenant what it may keep in each tier when there is not room for all: {"acme": {"host": "2GiB", "disk": 0.25,
        "weight": 2}}, sizes or shares of "device", "host" and "disk"; "*" stands for every other tenant, "" for what is no
        tenant's. What is above it goes first, whoever needs the room; what nobody needs may be used. {} (the default): the
        least recently used goes first, whoever's (docs/quotas.md).
    min_prefix_tokens: prompts of fewer tokens in whole blocks are not cached, and fewer tokens of one are not loaded from a
        lower tier. 0 keeps all: even short ones are found on the device for nothing.
    layer_groups: groups of layers in which blocks come back from host memory: computing a prompt may begin when the
        first is there, where nothing else can be computed. "auto" is 1 on the CPU, where it gains nothing, up to 4 on CUDA.
    max_model_len: tokens of prompt and reply together; None is the model's own limit.
    max_num_seqs: requests computed at the same time.
    max_batch_tokens: tokens of one forward, and so the size of a prefill chunk. With 1024 a cold prompt of 4160 tokens
        costs what transformers' own forward costs; decodes wait for a chunk to end.
    deterministic: the same logits, bit for bit, whether a prefix was cached or not and whatever else runs;
        decoding is slower.
    load: "auto" loads as much of what a lower tier has as makes the first token come soonest, by what loading and computing have
        taken here, and computes what has not come from disk in time; it knows what it has learned after a restart
        (docs/load-or-compute.md). "always" loads all, "never" recomputes it (to compare).
    num_threads: torch's threads; None leaves torch's choice.
    record_path: a file to which everything that is served is written, as a trace without tokens or text (docs/record.md). Begun
        anew at each start; None writes none.
    record_bytes: when it has become so large it is renamed, in place of the one before it, and another begun: so there are two.
    record_key_file: with the key that blocks are named by, 32 bytes or 64 hexadecimal digits; None draws one at each start.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    kv_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "sdpa", "flashinfer"] = "auto"
    block_tokens: int = 16
    device_bytes: int | str = "auto"
    device_memory_fraction: float = 0.9
    host_bytes: int | str = "auto"
    host_clean_share: float = 0.5
    policy: str = "lru"
    admission: str = "adaptive"
    disk_path: str | Path | None = None
    disk_bytes: int | str = "16GiB"
    disk_bytes_a_day: int | str | None = None
    disk_min_free_bytes: int | str = "2GiB"
    disk_durability: Durability = "relaxed"
    disk_compression: Compression = "auto"
    disk_key_file: str | Path | None = None
    disk_read_threads: int | Literal["auto"] = "auto"
    disk_queue_bytes: int | str = "32MiB"
    restore_wait_s: float = 1.0
    disk_deadline_s: float = 10.0
    ttl_s: float | None = None
    held_share: float = 0.5
    max_names: int = 1000
    tenant_quotas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    min_prefix_tokens: int = 0
    layer_groups: int | Literal["auto"] = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 8
    max_batch_tokens: int = 1024
    deterministic: bool = False
    load: Literal["always", "never", "auto"] = "auto"
    num_threads: int | None = None
    record_path: str | Path | None = None
    record_bytes: int | str = "256MiB"
    record_key_file: str | Path | None = None

    def __post_init__(self) -> None:
        _check_choice("device", self.device, ("auto", *DEVICES))
        _check_choice("dtype", self.dtype, ("auto", *DTYPES))
        _check_choice("kv_dtype", self.kv_dtype, ("auto", *DTYPES))
        _check_choice("load", self.load, LOADS)
        _check_choice("attention", self.attention, ATTENTIONS)
        _check_choice("disk_durability", self.disk_durability, DURABILITIES)
        _check_choice("disk_compression", self.disk_compression, COMPRESSIONS)
        _check_choice("deterministic", self.deterministic, (True, False))
        _check_choice("block_tokens", self.block_tokens, (16, 32))
        for name in ("max_num_seqs", "max_batch_tokens"):
            check_whole(name, getattr(self, name), 1)
        for name in ("disk_read_threads", "layer_groups"):
            if getattr(self, name) != "auto":
                check_whole(name, getattr(self, name), 1)
        check_number("device_memory_fraction", self.device_memory_fraction, 0.0, 1.0, above=True)
        check_number("host_clean_share", self.host_clean_share, 0.0, 1.0)
        check_number("held_share", self.held_share, 0.0, 1.0)
        check_number("restore_wait_s", self.restore_wait_s, 0.0)
        check_number("disk_deadline_s", self.disk_deadline_s, 0.0, above=True)
        if self.ttl_s is not None:
            check_number("ttl_s", self.ttl_s, 0.0, above=True)
        for name in ("min_prefix_tokens", "max_names"):
            check_whole(name, getattr(self, name), 0)
        object.__setattr__(self, "tenant_quotas", checked_quotas(self.tenant_quotas))
        for name in ("max_model_len", "num_threads"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)
        for name in (
            "device_bytes",
            "host_bytes",
            "disk_bytes",
            "disk_min_free_bytes",
            "disk_queue_bytes",
            "record_bytes",
        ):
            self._parse_size(name, allow_auto=name in ("device_bytes", "host_bytes"))
        if self.disk_bytes_a_day is not None:
            self._parse_size("disk_bytes_a_day", allow_auto=False)
            if self.disk_bytes_a_day == 0:
                raise ValueError("disk_bytes_a_day must be above 0; leave disk_path out to write nothing")
        for name in ("disk_path", "disk_key_file", "record_path", "record_key_file"):
            if (value := getattr(self, name)) is not None:
                if not isinstance(value, str | Path) or not str(value):
                    raise ValueError(f"{name} must be a path or None, got {value!r}")
                object.__setattr__(self, name, Path(value))
        policy_named(self.policy)
        admission_named(self.admission)
        self._check_together()

    def _parse_size(self, name: str, *, allow_auto: bool) -> None:
        value = getattr(self, name)
        if not (allow_auto and value == "auto"):
            # The dataclass is frozen for its users; this is still its construction.
            object.__setattr__(self, name, parse_bytes(value, name))

    def _check_together(self) -> None:
        if self.deterministic and self.max_batch_tokens % TILE_TOKENS:
            raise ValueError(
                f"deterministic needs max_batch_tokens to be a multiple of {TILE_TOKENS}, "
                f"got {self.max_batch_tokens}"
            )
        if self.deterministic and self.attention == "flashinfer":
            raise ValueError(
                "deterministic computes attention by SDPA, whose bits are known; leave attention='flashinfer' out"
            )
        if self.device_bytes == 0:
            raise ValueError("device_bytes must not be 0: the model computes in the device's block pool")
        if self.disk_path is not None and self.disk_bytes == 0:
            raise ValueError("disk_bytes is 0 although disk_path is set; leave disk_path out instead")
        if self.disk_key_file is not None and self.disk_path is None:
            raise ValueError("disk_key_file is set although disk_path is not: there is nothing to encrypt")
        if self.record_key_file is not None and self.record_path is None:
            raise ValueError("record_key_file is set although record_path is not: nothing is recorded")

    def resolve(self, taken_bytes: int = 0) -> "Resources":
        """Decide what "auto" left open, from this machine as it is now.

        Call it after the model is loaded, as both take from the same memory. taken_bytes: of what is decided on here, which
        is in memory already. Imports torch. Raises ValueError for device "cuda" where torch finds no GPU.
        """
        device = _resolve_device(self.device)
        dtype = self.dtype if self.dtype != "auto" else ("float32" if device == "cpu" else "bfloat16")
        return Resources(
            device=device,
            dtype=dtype,
            kv_dtype="bfloat16" if self.kv_dtype == "auto" else self.kv_dtype,
            device_bytes=self._device_bytes(device, taken_bytes),
            host_bytes=self._host_bytes(taken_bytes),
            disk_bytes=0 if self.disk_path is None else _decided(self.disk_bytes),
            disk_bytes_a_day=None if self.disk_bytes_a_day is None else _decided(self.disk_bytes_a_day),
            disk_min_free_bytes=_decided(self.disk_min_free_bytes),
            disk_queue_bytes=_decided(self.disk_queue_bytes),
            disk_read_threads=read_threads(self.disk_read_threads),
        )

    def _device_bytes(self, device: str, taken_bytes: int) -> int | None:
        if isinstance(self.device_bytes, int):
            return self.device_bytes
        if device == "cuda":
            return None
        available = available_memory_bytes() + taken_bytes
        return min(int(available * _CPU_POOL_SHARE), _CPU_POOL_LIMIT_BYTES)

    def _host_bytes(self, taken_bytes: int) -> int:
        if isinstance(self.host_bytes, int):
            return self.host_bytes
        available = available_memory_bytes() + taken_bytes
        return min(int(available * _HOST_SHARE), _HOST_LIMIT_BYTES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """A configuration's open choices, decided for one machine; sizes in bytes, 0 for a tier that is off.

    device_bytes: None where only a measurement decides, see device_memory.py. disk_bytes_a_day: None for no limit.
    """

    device: str
    dtype: str
    kv_dtype: str
    device_bytes: int | None
    host_bytes: int
    disk_bytes: int
    disk_bytes_a_day: int | None
    disk_min_free_bytes: int
    disk_queue_bytes: int
    disk_read_threads: int


def config_from(values: dict[str, object]) -> EngineConfig:
    """Build a configuration from a mapping, as read from a file. Raises ValueError for unknown keys."""
    known = [field.name for field in fields(EngineConfig)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"unknown setting {unknown[0]!r}; known are {', '.join(known)}")
    return EngineConfig(**values)  # type: ignore[arg-type]  # __post_init__ checks each value


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if not any(value is choice or (value == choice and type(value) is type(choice)) for choice in choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _resolve_device(device: str) -> str:
    import torch  # not needed to write or check a configuration

    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ValueError("device is 'cuda' but torch finds no GPU; install a CUDA build or use 'cpu'")
    return ("cuda" if has_cuda else "cpu") if device == "auto" else device


def read_threads(value: int | str) -> int:
    """How many threads read from disk, where `disk_read_threads` says this."""
    if isinstance(value, int):
        return value
    return min(num_cores() + 1, _MOST_READ_THREADS)


def _decided(value: int | str) -> int:
    assert isinstance(value, int), "only sizes that the machine may decide stay 'auto' after construction"
    return value
