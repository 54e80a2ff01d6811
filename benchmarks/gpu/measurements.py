"""All measurements, and the rows that each of them has. Needs nothing but the standard library."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu import copies, decode, overlap, ttft


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One of them. `names` and `measure` take a shape and a size; `needs_disk`: whether a row does."""

    names: Callable[[str, str], list[str]]
    measure: Callable[..., Iterator[dict[str, Any]]]
    needs_disk: Callable[[str], bool]
    columns: tuple[str, ...]
    """Of the table for people."""


MEASUREMENTS = {
    "copies": Measurement(
        names=copies.names,
        measure=copies.measure,
        needs_disk=lambda _: False,
        columns=(
            "name",
            "block_bytes",
            "gb_per_s",
            "slowest_gb_per_s",
            "fastest_gb_per_s",
            "plain_gb_per_s",
            "share",
        ),
    ),
    "overlap": Measurement(
        names=overlap.names,
        measure=overlap.measure,
        needs_disk=lambda _: False,
        columns=(
            "name",
            "device_s",
            "one_group_s",
            "groups_s",
            "promotion_s",
            "hidden_with_one_group",
            "hidden_with_groups",
            "repeats",
        ),
    ),
    "ttft": Measurement(
        names=ttft.names,
        measure=ttft.measure,
        needs_disk=ttft.needs_disk,
        columns=(
            "name",
            "ttft_s",
            "fastest_s",
            "slowest_s",
            "decode_tokens_per_s",
            "replies_as_from_disk",
            "repeats",
            "complaint",
        ),
    ),
    "decode": Measurement(
        names=decode.names,
        measure=decode.measure,
        needs_disk=lambda _: True,  # its two rows are for comparing
        columns=(
            "name",
            "decode_tokens_per_s",
            "output_tokens_per_s",
            "between_tokens_p50_s",
            "between_tokens_p99_s",
            "evicted_blocks",
            "disk_blocks",
            "complaint",
        ),
    ),
}
