"""`python -m benchmarks.gpu MEASUREMENT`: one measurement of what a GPU does, its rows printed as lines of JSON.

`make gpu-check` runs all of them. With --device cpu and --size rehearsal every line runs in seconds without a GPU.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.gpu.measurements import MEASUREMENTS
from benchmarks.gpu.shapes import NAMES, SHAPES


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measurement", choices=MEASUREMENTS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=SHAPES, default="full")
    parser.add_argument("--shape", help="one of those of the size, or a model's directory; default: all")
    parser.add_argument("--without-disk", action="store_true", help="leave out the rows that need the disk")
    parser.add_argument("--rows", type=Path, help="a file to which the rows are added, as they come")
    arguments = parser.parse_args()
    if arguments.measurement in ("copies", "overlap") and arguments.shape not in (None, *NAMES):
        parser.error(f"--shape: {arguments.measurement} knows {', '.join(NAMES)}")
    if arguments.device == "cuda" and not _has_cuda():
        parser.error("--device: torch sees no CUDA device; --device cpu runs without one")
    chosen = MEASUREMENTS[arguments.measurement]
    start_s = time.monotonic()

    def tell(text: str) -> None:
        print(f"  {time.monotonic() - start_s:6.1f} s  {text}", file=sys.stderr, flush=True)

    more = {"disk": False} if arguments.without_disk and arguments.measurement == "ttft" else {}
    for shape in (arguments.shape,) if arguments.shape else SHAPES[arguments.size]:
        for row in chosen.measure(shape, arguments.size, arguments.device, tell, **more):
            line = json.dumps(row)
            print(line, flush=True)
            if arguments.rows:
                with arguments.rows.open("a") as file:
                    file.write(line + "\n")
    return 0


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
