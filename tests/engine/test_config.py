"""Settings are checked where they are given, and "auto" is decided within what the machine has."""

from pathlib import Path

import pytest

from engine.config import EngineConfig, config_from
from engine.sizes import available_memory_bytes, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (4096, 4096),
        ("0", 0),
        ("64MiB", 64 * 2**20),
        ("1.5GB", 1_500_000_000),
        ("512 kB", 512_000),
        (" 2 tib ", 2 * 2**40),
        ("7b", 7),
    ],
)
def test_sizes_as_people_write_them(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "MiB",
        "64 XB",
        "-1",
        "1e9",
        "1,5GB",
        -1,
        1.5,
        True,
        None,
        2**63,
        "8388608 TiB",
        "9" * 5000,
        f"{10**50}.5 GiB",
    ],
)
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="host_bytes"):
        parse_bytes(text, "host_bytes")


def test_sizes_are_shown_short():
    assert [format_bytes(size) for size in (0, 1023, 1536, 3 * 2**30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "3.0 GiB",
    ]


def machine(root: Path, available_kib: int, groups: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:  {available_kib} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_available_memory_without_a_group_limit(tmp_path):
    limits = {"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "5\n"}
    assert available_memory_bytes(machine(tmp_path, 1000, "0::/\n", limits)) == 1000 * 1024


def test_available_memory_below_an_ancestors_limit(tmp_path):
    """Page cache that the kernel can drop counts as free."""
    files = {
        "sys/fs/cgroup/a/memory.max": "500000\n",
        "sys/fs/cgroup/a/memory.current": "400000\n",
        "sys/fs/cgroup/a/memory.stat": "anon 7\ninactive_file 1000\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/b/memory.current": "1\n",
    }
    assert available_memory_bytes(machine(tmp_path, 1000, "0::/a/b\n", files)) == 101_000


def test_available_memory_in_a_version_1_group(tmp_path):
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "300000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "100000\n",
    }
    assert available_memory_bytes(machine(tmp_path, 1000, "9:cpu:/x\n4:memory:/docker/x\n", files)) == 200_000


def test_every_field_has_a_default_and_auto_stays_within_the_machine():
    chosen = EngineConfig(device="cpu").resolve()
    available = available_memory_bytes()
    assert (chosen.device, chosen.dtype, chosen.kv_dtype) == ("cpu", "float32", "bfloat16")
    assert 0 < chosen.device_bytes <= available
    assert 0 < chosen.host_bytes <= available
    assert chosen.disk_bytes == 0, "no path, no disk tier"


def test_what_is_given_is_kept(tmp_path):
    config = EngineConfig(
        device="cpu", kv_dtype="float32", device_bytes="1MiB", host_bytes=0, disk_path=str(tmp_path)
    )
    chosen = config.resolve()
    assert config.disk_path == tmp_path
    assert (chosen.device_bytes, chosen.host_bytes, chosen.kv_dtype) == (2**20, 0, "float32")
    assert chosen.disk_bytes == 16 * 2**30


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", "tpu"),
        ("dtype", "float64"),
        ("kv_dtype", "int8"),
        ("block_tokens", 24),
        ("block_tokens", True),
        ("device_bytes", 0),
        ("device_bytes", "lots"),
        ("disk_bytes", "auto"),
        ("max_num_seqs", 0),
        ("max_batch_tokens", 1.5),
        ("max_model_len", -1),
        ("num_threads", 0),
        ("device_memory_fraction", 0),
        ("device_memory_fraction", 1.01),
        ("device_memory_fraction", "0.9"),
        ("disk_deadline_s", 0),
        ("ttl_s", 0),
        ("ttl_s", float("inf")),
        ("deterministic", 1),
        ("load", "sometimes"),
        ("attention", "flash"),
        ("policy", "least"),
    ],
)
def test_a_wrong_setting_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        EngineConfig(**{field: value})


def test_settings_that_do_not_go_together(tmp_path):
    with pytest.raises(ValueError, match="multiple of 128"):
        EngineConfig(deterministic=True, max_batch_tokens=160)
    with pytest.raises(ValueError, match="deterministic computes attention by SDPA"):
        EngineConfig(deterministic=True, attention="flashinfer")
    for wrong in ({"disk_path": 3}, {"disk_path": ""}, {"disk_key_file": 3, "disk_path": tmp_path}):
        with pytest.raises(ValueError, match="must be a path"):
            EngineConfig(**wrong)
    with pytest.raises(ValueError, match="nothing to encrypt"):
        EngineConfig(disk_key_file=tmp_path / "key")
    with pytest.raises(ValueError, match="disk_path"):
        EngineConfig(disk_path=tmp_path, disk_bytes=0)


def test_settings_from_a_file_must_be_known():
    assert config_from({"host_bytes": "1GiB"}).host_bytes == 2**30
    with pytest.raises(ValueError, match="'hots_bytes'; known are device"):
        config_from({"hots_bytes": 1})


@pytest.mark.parametrize(("cores", "threads"), [(1, 2), (2, 3), (3, 4), (64, 8)])
def test_a_thread_more_than_there_are_cores_reads_from_disk(monkeypatch, cores, threads):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)))
    assert EngineConfig(device="cpu").resolve().disk_read_threads == threads
    assert EngineConfig(device="cpu", disk_read_threads=3).resolve().disk_read_threads == 3
