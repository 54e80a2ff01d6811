"""`make bench-codec`: how much smaller KV becomes without loss, and how fast.

The demo model's KV of a real text, computed by the engine and read back from its disk tier, in bfloat16, float16 and float32,
as torch's two float8 types, and random bytes as the worst there is. Each by all codecs in turn: as it is, zstd alone, the
planes, the planes less a baseline, both also in the code of our own (kvstore.huffman), and beside them the order-0 entropy of exponents (and of the whole float8), channel by channel,
which no coder of single exponents can beat. Baselines are learned from the text's first tokens, and blocks behind them are
measured. Rates are bytes of KV a second of one thread's processor time; records are with all checks, as a store packs and
unpacks them.
"""

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import zstandard
from numpy.typing import NDArray

from benchmarks import command
from kvstore.baseline import FIRST_BITS, LEARN_TOKENS, Baseline, Baselines
from kvstore.block import ITEMSIZES, KEY_BYTES, BlockLayout, Namespace
from kvstore.codec import PARAMETERS, decode, encode
from kvstore.huffman import Codes
from kvstore.record import RecordFormat
from kvstore.store import BlockRef
from tiering.cli.environment import environment
from tiering.cli.kv_blocks import kv_blocks
from tiering.cli.markdown import gate, table

Blocks: TypeAlias = NDArray[np.uint8]
"""[blocks, bytes of a block]."""

_BLOCK_TOKENS: Final = 16
_DTYPES: Final = {"bfloat16": 2, "float16": 2, "float32": 4, "float8_e4m3fn": 1, "float8_e5m2": 1}
_RANDOM: Final = "random bytes"
_WARM_UP: Final = 1
_OWN_CODE: Final = ", own code where it suits"


@dataclass(frozen=True)
class Way:
    """To encode the bytes of a block and back. `decode` fills the buffer that it is given."""

    name: str
    encode: Callable[[Any], Any]
    decode: Callable[[Any, Any], object]
    num_bytes: Callable[[Any], int] = len


# --- what is encoded --------------------------------------------------------------------------------------------------


def demo_kv(num_tokens: int) -> tuple[BlockLayout, NDArray[np.float32]]:
    """Layout (of float32) and blocks [blocks, *layout.shape] of the demo model's KV, as the engine leaves it on disk."""
    with tempfile.TemporaryDirectory() as folder:
        found = kv_blocks("demo", num_tokens + 1, 0, Path(folder), print, kv_dtype="float32")
    return found.layout, found.data.view(np.float32).reshape(-1, *found.layout.shape)


def converted(blocks: NDArray[np.float32], dtype: str) -> Blocks:
    """The same numbers in another type, as torch rounds them."""
    import torch

    words = torch.from_numpy(blocks).to(getattr(torch, dtype)).reshape(len(blocks), -1).view(torch.uint8)
    return words.numpy()


# --- how --------------------------------------------------------------------------------------------------------------


def ways(layout: BlockLayout, itemsize: int, learned: Mapping[int, Baseline]) -> list[Way]:
    """All ways to encode blocks of this layout, records with their checks among them."""

    def copy(data: Any, out: Any) -> None:
        out[:] = np.frombuffer(data, np.uint8)

    def zstd(name: str, compressor: zstandard.ZstdCompressor) -> Way:
        decompressor = zstandard.ZstdDecompressor()
        return Way(name, compressor.compress, lambda data, out: copy(decompressor.decompress(data), out))

    def planes(name: str, baseline: Baseline | None, codes: Codes | None = None) -> Way:
        known = {} if baseline is None else {baseline.digest: baseline}

        def encoded(data: Any) -> tuple[int, NDArray[np.uint8]]:
            out = np.empty(layout.block_bytes, np.uint8)
            codec, num_bytes = encode(data, itemsize, out, baseline, codes, learns=True)
            return codec, out[out.size - num_bytes :]

        return Way(
            name,
            encoded,
            lambda data, out: decode(data[0], data[1], itemsize, out, known),
            lambda data: len(data[1]),
        )

    found = [
        Way("raw", bytes, copy),
        zstd("zstd-1", zstandard.ZstdCompressor(level=1)),
        zstd("zstd as a Huffman coder", zstandard.ZstdCompressor(compression_params=PARAMETERS)),
        planes("planes", None),
        *(planes(f"baseline of {num_tokens} tokens", baseline) for num_tokens, baseline in learned.items()),
        planes(f"planes{_OWN_CODE}", None, Codes()),
        *(
            planes(f"baseline of {num_tokens} tokens{_OWN_CODE}", baseline, Codes())
            for num_tokens, baseline in learned.items()
        ),
    ]
    if learned:
        found.append(_record(layout, learned[max(learned)]))
    return found


def _record(layout: BlockLayout, baseline: Baseline) -> Way:
    """As a store does it: with all checks."""
    form = RecordFormat(Namespace.of({}), layout)
    form.baselines.add(baseline)
    ref = BlockRef(bytes(KEY_BYTES), bytes(KEY_BYTES), bytes(layout.token_id_bytes))

    def unpacked(record: bytes, out: Any) -> None:
        reason = form.unpack(record, ref, out)
        assert reason is None, reason

    return Way("record", lambda data: form.pack(ref, data, 0), unpacked)


def learned_from(layout: BlockLayout, blocks: Blocks, num_tokens: int) -> Baseline:
    """The baseline that a store learns from the first tokens."""
    baselines = Baselines(layout, (num_tokens,))
    for block in blocks[: num_tokens // layout.block_tokens]:
        baselines.learn(block)
    return baselines.learned()


# --- how well ---------------------------------------------------------------------------------------------------------


def measure_type(
    dtype: str, layout: BlockLayout, first: Blocks, blocks: Blocks, repeats: int
) -> list[dict[str, Any]]:
    """A row for each way. `first` is what baselines are learned from, `blocks` what is encoded."""
    itemsize = _DTYPES.get(dtype, 2)
    learn_tokens = LEARN_TOKENS if dtype in ITEMSIZES else ()
    learned = {n: learned_from(layout, first, n) for n in learn_tokens}
    chosen = ways(layout, itemsize, learned)
    rows = [{"dtype": dtype, "codec": way.name, **_ratios(way, blocks)} for way in chosen]
    for row, rates in zip(rows, _rates(chosen, blocks, repeats), strict=True):
        row.update(rates)
    halves = _halves(layout, blocks)
    if dtype != _RANDOM:
        of_half = {part: _ways_of_half(layout, itemsize, first, part, learn_tokens) for part in halves}
        for part, half in halves.items():
            for row, way in zip(rows, of_half[part], strict=False):
                row[f"ratio_{part}"] = _ratios(way, half)["ratio"]
        rows.append(_ceiling(dtype, layout, itemsize, blocks))
    return rows


def _ways_of_half(
    layout: BlockLayout, itemsize: int, first: Blocks, part: str, learn_tokens: Sequence[int]
) -> list[Way]:
    half = replace(layout, num_layers=layout.num_layers // 2)
    blocks = _halves(layout, first)[part]
    learned = {n: learned_from(half, blocks, n) for n in learn_tokens}
    return ways(half, itemsize, learned)


def _halves(layout: BlockLayout, blocks: Blocks) -> dict[str, Blocks]:
    """Keys and values by themselves: as many bytes as blocks of half the layers."""
    apart = blocks.reshape(len(blocks), layout.num_layers, 2, -1)
    return {
        name: np.ascontiguousarray(apart[:, :, part]).reshape(len(blocks), -1)
        for part, name in enumerate("kv")
    }


def _ratios(way: Way, blocks: Blocks) -> dict[str, float]:
    return {"ratio": round(blocks.size / sum(way.num_bytes(way.encode(block)) for block in blocks), 4)}


def _rates(chosen: Sequence[Way], blocks: Blocks, repeats: int) -> list[dict[str, Any]]:
    """GB/s of each way, all in turn, so that whatever else the machine does befalls all of them. What does not come back
    byte for byte is an error.
    """
    out = np.empty(blocks.shape[1], dtype=np.uint8)
    encoded = [[way.encode(block) for block in blocks] for way in chosen]
    took_s: list[dict[str, list[float]]] = [{"encode": [], "decode": []} for _ in chosen]
    for repeat in range(_WARM_UP + repeats):
        for way, took, own in zip(chosen, took_s, encoded, strict=True):
            begin = time.thread_time()
            for block in blocks:
                way.encode(block)
            encoded_at = time.thread_time()
            for each in own:
                way.decode(each, out)
            end = time.thread_time()
            assert np.array_equal(out, blocks[-1]), f"{way.name} does not give back what it got"
            if repeat >= _WARM_UP:
                took["encode"].append(encoded_at - begin)
                took["decode"].append(end - encoded_at)
    return [
        {
            key: value
            for doing, times in took.items()
            for key, value in (
                (f"{doing}_gb_s", round(blocks.size / statistics.median(times) / 1e9, 3)),
                (f"{doing}_spread", [round(blocks.size / t / 1e9, 3) for t in (max(times), min(times))]),
            )
        }
        for took in took_s
    ]


def _ceiling(dtype: str, layout: BlockLayout, itemsize: int, blocks: Blocks) -> dict[str, Any]:
    """What a perfect coder of single exponents would reach that knows each channel's distribution beforehand."""
    words = blocks.view(f"u{itemsize}").reshape(len(blocks), layout.num_layers, 2, layout.block_tokens, -1)
    bits = itemsize * 8
    exponents = words if itemsize == 1 else (words >> FIRST_BITS[dtype]).astype(np.uint8)
    channels = exponents.transpose(1, 2, 4, 0, 3).reshape(layout.num_layers, 2, words.shape[-1], -1)
    coded = np.array([[[_entropy(channel) for channel in each] for each in layer] for layer in channels])
    kept = 0 if itemsize == 1 else bits - 8

    def ratio(entropies: NDArray[np.float64]) -> float:
        return round(bits / (float(entropies.mean()) + kept), 4)

    parts = {"ratio": coded, "ratio_k": coded[:, 0], "ratio_v": coded[:, 1]}
    return {"dtype": dtype, "codec": "order-0 entropy", **{name: ratio(part) for name, part in parts.items()}}


def _entropy(symbols: NDArray[np.uint8]) -> float:
    counts = np.bincount(symbols, minlength=256)
    shares = counts[counts > 0] / symbols.size
    return float(-(shares * np.log2(shares)).sum())


def side_by_side(layout: BlockLayout, first: Blocks, blocks: Blocks, repeats: int) -> list[dict[str, Any]]:
    """Records packed and unpacked by one thread and by two: GB/s by the clock, and by processor time of all threads."""
    way = _record(layout, learned_from(layout, first, max(LEARN_TOKENS)))
    records = [way.encode(block) for block in blocks]

    def unpack() -> None:
        out = np.empty(blocks.shape[1], dtype=np.uint8)
        for record in records:
            way.decode(record, out)

    def pack() -> None:
        for block in blocks:
            way.encode(block)

    rows = []
    for num_threads in (1, 2):
        for name, job in (("pack", pack), ("unpack", unpack)):
            clock, cpu = zip(*(_together(job, num_threads) for _ in range(repeats)), strict=True)
            num_bytes = blocks.size * num_threads / 1e9
            rows.append(
                {
                    "threads": num_threads,
                    "record": name,
                    "gb_s_by_the_clock": round(num_bytes / statistics.median(clock), 3),
                    "gb_s_by_processor_time": round(num_bytes / statistics.median(cpu), 3),
                }
            )
    return rows


def _together(job: Callable[[], None], num_threads: int) -> tuple[float, float]:
    threads = [threading.Thread(target=job) for _ in range(num_threads)]
    begin, cpu_begin = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begin, time.process_time() - cpu_begin


# --- the report -------------------------------------------------------------------------------------------------------


def gates(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What must hold."""
    of = {(row["dtype"], row["codec"]): row for row in rows}
    best = f"baseline of {max(LEARN_TOKENS)} tokens{_OWN_CODE}"
    wanted = [
        *(
            (f"ratio of {dtype}, {name}", of[dtype, codec]["ratio"], bound, "raw / encoded")
            for dtype, bound in (("bfloat16", 1.50), ("float16", 1.18))
            for name, codec in (("the codec alone", best), ("records with all that they hold", "record"))
        ),
        ("unpack bfloat16, checks included", of["bfloat16", "record"]["decode_gb_s"], 1.2, "GB/s a core"),
        ("pack bfloat16, checks included", of["bfloat16", "record"]["encode_gb_s"], 0.75, "GB/s a core"),
    ]
    return [gate(*each, at_most=False) for each in wanted]


def measure(num_tokens: int, repeats: int, seed: int) -> dict[str, Any]:
    """All figures."""
    layout, kv = demo_kv(num_tokens)
    num_first = max(LEARN_TOKENS) // layout.block_tokens
    rows, threads = [], []
    for dtype in (*_DTYPES, _RANDOM):
        of_type = replace(layout, dtype=dtype if dtype in ITEMSIZES else "bfloat16")
        blocks = converted(kv, dtype) if dtype != _RANDOM else _noise(of_type, len(kv), seed)
        print(f"{dtype} ...", file=sys.stderr, flush=True)
        rows += measure_type(dtype, of_type, blocks[:num_first], blocks[num_first:], repeats)
        if dtype == "bfloat16":
            threads = side_by_side(of_type, blocks[:num_first], blocks[num_first:], repeats)
    return {
        "command": "make bench-codec",
        "environment": environment(),
        "tokens": num_tokens,
        "tokens_measured": num_tokens - max(LEARN_TOKENS),
        "learn_tokens": LEARN_TOKENS,
        "block_tokens": layout.block_tokens,
        "seed": seed,
        "warm_up": _WARM_UP,
        "repeats": repeats,
        "rows": rows,
        "threads": threads,
        "gates": gates(rows),
    }


def _noise(layout: BlockLayout, num_blocks: int, seed: int) -> Blocks:
    return np.random.default_rng(seed).integers(0, 256, (num_blocks, layout.block_bytes), dtype=np.uint8)


def report(figures: Mapping[str, Any]) -> str:
    """For people."""
    machine = figures["environment"]
    columns = ("dtype", "codec", "ratio_k", "ratio_v", "ratio", "encode_gb_s", "decode_gb_s")
    rows = [{**dict.fromkeys(columns, ""), **row} for row in figures["rows"]]
    parts = [
        "# KV made smaller without loss",
        (
            f"`{figures['command']}`, commit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores: the demo model's KV "
            f"of a real text, blocks of {figures['block_tokens']} tokens; the tokens from {max(LEARN_TOKENS)} to "
            f"{figures['tokens']}, medians of {figures['repeats']}. Rates are of one thread's processor time; those of a record "
            "include its checks."
        ),
        table(rows, columns),
        table(figures["threads"], list(figures["threads"][0])),
        table(figures["gates"], ("name", "value", "bound", "unit", "holds")),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = command.parser(__doc__)
    parser.add_argument("--tokens", type=int, default=6144, help=f"of text; more than {max(LEARN_TOKENS)}")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0, help="of the random bytes")
    arguments = parser.parse_args()
    if arguments.tokens <= max(LEARN_TOKENS):
        parser.error(f"--tokens must be more than {max(LEARN_TOKENS)}, of which baselines are learned")
    figures = measure(arguments.tokens, arguments.repeats, arguments.seed)
    command.publish(arguments.json, figures, report(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
