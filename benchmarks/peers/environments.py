"""The systems, and an environment of its own for each peer: its released wheel, unchanged, and what its store imports."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "LMCACHE_TRACK_USAGE": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}
"""Nobody is told of these runs, and nothing is fetched in them."""


@dataclass(frozen=True)
class System:
    """A system, what is said of it in the report, and what is installed for it."""

    title: str
    stored: str
    checksum: str
    requirement: str | None = None
    """None: kvtide, in the environment that this runs in."""
    needs: tuple[str, ...] = ()
    """What importing its store, and its index, needs of the requirement's dependencies. None of it needs a GPU."""


SYSTEMS = {
    "kvtide": System(
        title="kvtide LmdbStore",
        stored="one record a block in one LMDB file, written with `put_many` and `sync`, read with `get_many`. "
        "Cut to half, in use or at rest, "
        "it is set aside whole.",
        checksum="Every record carries checksums, always.",
    ),
    "lmcache": System(
        title="LMCache local disk",
        stored="one file a block, written by `LocalDiskBackend.submit_put_task` (waiting for its completion callback), "
        "read with `contains` and `get_blocking`; defaults, with room for 1 GiB on disk and 64 MiB of staging memory. "
        "Its index is in memory: another process finds nothing. Its multi-process mode, with other stores, was not tried.",
        checksum="It has no checksum for this backend; `audit_verify_checksum`, off by default, belongs to a remote "
        "connector and keeps its sums in memory.",
        requirement="lmcache==0.5.6",
        needs=(
            "aiofile",
            "aiohttp",
            "cachetools",
            "cryptography",
            "msgspec",
            "numba",
            "numpy<=2.2.6",
            "prometheus_client",
            "psutil",
            "py-cpuinfo",
            "pyyaml",
            "pyzmq",
            "requests",
            "sortedcontainers",
            "transformers",
        ),
    ),
    "sglang": System(
        title="SGLang HiCacheFile",
        stored="one file a block (page), written with `batch_set`, read with `batch_exists` and `batch_get`, as its "
        "cache controller does; defaults.",
        checksum="It has no checksum for this backend.",
        requirement="sglang==0.5.23",
        needs=(
            "aiohttp",
            "apache-tvm-ffi",
            "compressed-tensors",
            "dill",
            "gguf",
            "ipython",
            "msgspec",
            "numpy",
            "openai",
            "orjson",
            "packaging",
            "partial-json-parser",
            "pillow",
            "psutil",
            "pybase64",
            "pydantic",
            "pyzmq",
            "requests",
            "sentencepiece",
            "starlette",
            "tqdm",
            "transformers",
            "triton",
        ),
    ),
    "vllm": System(
        title="vLLM fs tier",
        stored="one file a block (chunk), written by `FileSystemTierManager.submit_store`, read with `lookup` and "
        "`submit_load` into another chunk of the primary tier, a job's failure counted as refused; defaults.",
        checksum="It has no checksum for this tier.",
        requirement="vllm==0.33.0",
        needs=(
            "aiohttp",
            "cachetools",
            "cbor2",
            "cloudpickle",
            "fastapi",
            "llguidance",
            "msgspec",
            "numpy",
            "openai",
            "oss-harmony",
            "packaging",
            "partial-json-parser",
            "pillow",
            "prometheus_client",
            "psutil",
            "py-cpuinfo",
            "pybase64",
            "pydantic",
            "pyyaml",
            "pyzmq",
            "regex",
            "requests",
            "tqdm",
            "transformers",
            "uvloop",
            "xgrammar",
        ),
    ),
}


def python(name: str, environments: Path) -> Path:
    """The interpreter that has the system, after making its environment if it is not there."""
    system = SYSTEMS[name]
    if system.requirement is None:
        return Path(sys.executable)
    steps = [["install", *system.needs], ["install", "--no-deps", system.requirement]]
    made_of = "\n".join((TORCH, system.requirement, *system.needs))
    return environment(environments / name, steps, made_of)


def environment(home: Path, steps: Sequence[Sequence[str]], made_of: str, *, torch: bool = True) -> Path:
    """The interpreter of the environment `home`, after making it where it is not there or is made of something else.

    `steps` are what pip is told, one after the other; `torch` puts torch in before, which stays as it is. Raises
    CalledProcessError where pip fails.
    """
    interpreter, done = home / "bin" / "python", home / ".ready"
    if done.exists() and done.read_text() == made_of:
        return interpreter
    print(f"{home} is made, once: this takes minutes", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
    pip = [str(interpreter), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    constraints = home / "constraints.txt"
    constraints.write_text(f"{TORCH}+cpu\n")
    if torch:
        # first, without CUDA: what comes later is held to it, and would otherwise bring gigabytes
        install = [*pip, "install", f"{TORCH}+cpu"]
        if subprocess.run(install, capture_output=True, check=False).returncode:
            subprocess.run([*install, "--extra-index-url", TORCH_CPU_INDEX], check=True)
    for command, *what in steps:
        bound = ["--constraint", str(constraints)] if command == "install" and "--no-deps" not in what else []
        subprocess.run([*pip, command, *bound, *what], check=True)
    done.write_text(made_of)
    return interpreter
