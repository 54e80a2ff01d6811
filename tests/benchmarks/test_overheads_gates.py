"""What `make bench-overheads` holds against which bound."""

from benchmarks.overheads import promotions
from benchmarks.overheads.__main__ import gates


def test_each_gate_is_of_what_its_name_says():
    steps = [
        {"case": "default", "with_model": True, "share": 0.04, "share_but_for_choosing": 0.01},
        {"case": "sampled", "with_model": True, "share": 0.2, "share_but_for_choosing": 0.03},
        {"case": "sampled", "with_model": False, "share": 1.0, "share_but_for_choosing": 1.0},
    ]
    promoted = [
        {"from": source, "blocks": 256, "us_a_block": 9.0, "us_a_block_with_the_store": whole}
        for source, whole in (("host", 9.0), ("disk", 30.0))
    ]
    idle = [{"endpoint": False, "cpu_ms_a_second": 0.0}, {"endpoint": True, "cpu_ms_a_second": 0.2}]
    imports = [{"what": "kvtide --help", "cpu_s": 0.1}]
    held = {gate["name"]: (gate["value"], gate["holds"]) for gate in gates(steps, promoted, idle, imports)}
    assert held == {
        "loop's share of a step, default": (0.04, True),
        "loop's share of a step, sampled": (0.2, None),
        "loop's share of a step but for choosing tokens, sampled": (0.03, True),
        "promotion of 256 blocks from host": (9.0, True),
        "promotion of 256 blocks from disk, without the store": (9.0, True),
        "promotion of 256 blocks from disk, with the store, blocks of 1 kB": (30.0, None),
        "idle engine, without its endpoint": (0.0, True),
        "idle engine, with its endpoint": (0.2, False),
        "kvtide --help": (0.1, True),
    }


def test_a_promotion_counts_the_store_once_with_and_once_without():
    row = promotions.measure("disk", 16, repeats=1)
    assert row["us_a_block_with_the_store"] > row["us_a_block"] > 0
    assert row["in_the_store"] > 0
