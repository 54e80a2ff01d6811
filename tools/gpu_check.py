"""`make gpu-check`: what only a CUDA device can show, in one command, with the interpreter that runs this file.

It installs and fetches nothing. Steps that cannot run are listed with the reason. Exit status: 0 all ran and passed,
1 something failed, 3 something was not run (no CUDA device, or a package is missing). Under make, which turns every
failure into its own status 2, the 3 stands in make's last line.
"""

import argparse
import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_RUN = 3
# Imported by the steps. Without the second group there is no disk tier, and the rest still runs.
NEEDED = ("torch", "transformers", "numpy", "xxhash", "rich", "typer", "pytest")
NEEDED_FOR_DISK = ("lmdb", "zstandard")
DISK_TIERS = ("disk", "restart")


def arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="random", help="a Hugging Face directory; default: random weights")
    parser.add_argument("--prefix-tokens", type=int, default=4096)
    parser.add_argument("--suffix-tokens", type=int, default=64)
    parser.add_argument("--tiers", default="cold,device,host,disk,restart")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", default="gpu-check.json", help="where the bench writes its rows")
    return parser.parse_args()


def missing(modules: tuple[str, ...]) -> list[str]:
    """Return those modules that this interpreter does not have."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def gpu_tests() -> list[str]:
    """Return the test functions of tests/gpu, found without importing them."""
    found = []
    for path in sorted((ROOT / "tests" / "gpu").glob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        found += [f"{path.relative_to(ROOT)}::{name}" for name in names if name.startswith("test_")]
    return found


def why_nothing_can_run() -> str | None:
    """Return the reason why no step can run here, or None."""
    absent = missing(NEEDED)
    if absent:
        return f"{sys.executable} lacks {', '.join(absent)}"
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    print(
        f"gpu-check: {torch.cuda.get_device_name()}, torch {torch.__version__}, {sys.executable}", flush=True
    )
    return None


def run(step: list[str]) -> bool:
    """Run one step with this interpreter in the root of the repository, show it, and say whether it passed."""
    command = [sys.executable, *step]
    print("$", *command, flush=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def bench_command(options: argparse.Namespace, tiers: list[str]) -> list[str]:
    """Return the bench step over the given tiers."""
    command = ["-m", "tiering", "bench", "ttft", "--model", options.model, "--tiers", ",".join(tiers)]
    command += ["--prefix-tokens", str(options.prefix_tokens), "--suffix-tokens", str(options.suffix_tokens)]
    return [*command, "--repeats", str(options.repeats), "--json", options.json]


def main() -> int:
    """Run what can run, list what cannot, and return the exit status."""
    options = arguments()
    tiers = options.tiers.split(",")
    reason = why_nothing_can_run()
    if reason is not None:
        print(f"gpu-check: nothing was run, since {reason}. Not run:")
        print(
            "\n".join(f"  {name}" for name in [*gpu_tests(), *(f"bench ttft, tier {tier}" for tier in tiers)])
        )
        return NOT_RUN
    absent = missing(NEEDED_FOR_DISK)
    left_out = [tier for tier in tiers if absent and tier in DISK_TIERS]
    tests_passed = run(["-m", "pytest", "tests/gpu", "-m", "gpu"])
    bench_passed = run(bench_command(options, [tier for tier in tiers if tier not in left_out]))
    print(
        f"gpu-check: tests {'passed' if tests_passed else 'FAILED'}, bench {'ran' if bench_passed else 'FAILED'}"
    )
    for tier in left_out:
        print(f"  not run: bench ttft, tier {tier} ({sys.executable} lacks {', '.join(absent)})")
    if not (tests_passed and bench_passed):
        return 1
    return NOT_RUN if left_out else 0


if __name__ == "__main__":
    sys.exit(main())
