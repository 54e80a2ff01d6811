"""The figures of GET tiers, from stats and windows, in exact numbers."""

from kvstore.admin.tiers import COUNTED, as_engine, counts_of, not_ready, tiers_of
from kvstore.admin.windows import Windows

FULL = {
    "engine": {
        "waiting": 1,
        "running": 2,
        "prompt_tokens": 1000,
        "cached_tokens_by_tier": {"device": 400, "host": 200, "disk": 100},
        "missed_tokens": {"evicted": 300},
    },
    "cache": {
        "block_bytes": 100,
        "block_tokens": 16,
        "transfers": {
            "read": {
                "moves": 3,
                "blocks": 30,
                "bytes": 2000,
                "busy_s": 4.0,
                "failed_blocks": 1,
                "in_flight_blocks": 2,
            }
        },
        "tiers": {
            "device": {"slots": 10, "free": 1, "private": 2, "indexed": 6, "in_flight": 1, "evicted": 7},
            "host": {"slots": 20, "free": 20, "private": 0, "indexed": 0, "in_flight": 0, "dropped": 3},
            "disk": {
                "ready": True,
                "blocks": 50,
                "bytes": 4096,
                "capacity_bytes": 10_000,
                "writing_blocks": 3,
                "written_bytes": 500,
                "read_bytes": 250,
                "written_by_read": 2.0,
            },
        },
        "store": {
            "stored_bytes": 3000,
            "raw_bytes": 5000,
            "damaged": {"damaged_checksum": 1},
            "other_namespaces_bytes": 8,
        },
    },
    "disk_off": None,
    "gpu": {"name": "H200"},
}
HOST_MADE_SMALLER = {"slots": 20, "free": 5, "private": 0, "indexed": 3, "in_flight": 0, "retired": 12}
BARE = {
    "block_tokens": 16,
    "lookups": {"requests": 2, "blocks": 10, "hit_blocks": {"device": 5, "host": 0, "disk": 1}},
    "tiers": {"device": {"slots": 4, "free": 4}},
}


def windows_over(stats, before) -> Windows:
    windows = Windows(COUNTED)
    windows.add(0.0, before, epoch_s=0.0)
    windows.add(10.0, counts_of(stats), epoch_s=10.0)
    return windows


def test_slots_out_of_service_are_neither_capacity_nor_used():
    stats = {"cache": {"block_bytes": 100, "tiers": {"host": HOST_MADE_SMALLER}}}
    host = tiers_of(stats, Windows(COUNTED)).tiers[1]
    assert (host.capacity_blocks, host.used_blocks, host.live_blocks) == (8, 3, 3)
    assert (host.capacity_bytes, host.used_bytes) == (800, 300)


def test_all_figures_of_an_engine():
    found = tiers_of(FULL, windows_over(FULL, {"prompt_tokens": 200, "cached_disk": 20, "read_busy_s": 1.0}))
    device, host, disk = found.tiers
    assert (device.capacity_blocks, device.used_blocks, device.live_blocks, device.in_flight_blocks) == (
        10,
        9,
        6,
        1,
    )
    assert (device.capacity_bytes, device.used_bytes, device.evicted_blocks) == (1000, 900, 7)
    assert (host.on, host.used_bytes, host.dropped_blocks) == (True, 0, 3)
    assert (disk.capacity_bytes, disk.used_bytes, disk.live_bytes, disk.in_flight_bytes) == (
        10_000,
        4096,
        3000,
        300,
    )
    assert (disk.capacity_blocks, disk.live_blocks, disk.on, disk.ready) == (None, 50, True, True)
    assert disk.hit_rate == {"60": 0.1, "300": 0.1, "3600": 0.1}
    assert (found.windows[0].prompt_tokens, found.windows[0].hit_rate) == (800, (400 + 200 + 80) / 800)
    read = {each.name: each for each in found.transfers}["read"]
    assert (read.bytes_per_s["60"], read.busy_share["60"]) == (200.0, 0.3)
    assert (read.failed_blocks, read.in_flight_blocks, read.blocks) == (1, 2, 30)
    assert found.disk.compression_ratio == 5000 / 3000
    assert (found.disk.written_by_read, found.disk.damaged) == (2.0, {"damaged_checksum": 1})
    assert (found.queue.waiting, found.queue.running) == (1, 2)
    assert found.history == ((10.0, 0.5, 0.25, 0.1, 800),)
    assert found.gpu == {"name": "H200"}


def test_a_bare_cache_counts_blocks():
    stats = as_engine(BARE)
    found = tiers_of(stats, windows_over(stats, {}))
    assert found.windows[0].prompt_tokens == 160
    assert found.windows[0].cached_tokens_by_tier == {"device": 80, "host": 0, "disk": 16}
    assert found.disk is None
    assert found.queue is None
    assert found.tiers[0].capacity_bytes is None, "how large a block is was not told"


def test_nothing_is_known_of_what_was_not_sampled():
    found = tiers_of(FULL, Windows(COUNTED))
    assert found.windows[0].hit_rate is None
    assert found.tiers[0].hit_rate == {"60": None, "300": None, "3600": None}
    assert found.transfers[0].bytes_per_s == {"60": None, "300": None, "3600": None}
    assert found.history == ()


def test_nothing_asked_is_no_hit_rate():
    found = tiers_of(FULL, windows_over(FULL, counts_of(FULL)))
    assert found.windows[0].hit_rate is None
    assert found.transfers[0].bytes_per_s["60"] == 0.0


def test_a_disk_that_could_not_be_opened_is_off():
    found = tiers_of({**FULL, "disk_off": "another process has it"}, Windows(COUNTED))
    assert (found.tiers[2].on, found.tiers[2].ready) == (False, False)


def test_why_it_is_not_ready():
    assert not_ready(FULL) == []
    assert len(not_ready({"engine": {"draining": True, "failed": False}, "cache": {}})) == 1
    assert len(not_ready({"engine": {"draining": True, "failed": True}, "cache": {}})) == 2
