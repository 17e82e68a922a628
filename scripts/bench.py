#!/usr/bin/env python3
"""Benchmarks, each against its rivals in one run: `scripts/bench.py push|tar`.

Run them from the repository's root, with .venv/bin/python, on a quiet machine.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts import bench_push, bench_tar

BENCHES = {"push": bench_push.main, "tar": bench_tar.main}


def main() -> int:
    """Run the benchmark that the first argument names."""
    if len(sys.argv) < 2 or sys.argv[1] not in BENCHES:
        sys.stderr.write(f"usage: scripts/bench.py {'|'.join(BENCHES)} [ARGUMENTS]\n")
        return 2
    BENCHES[sys.argv[1]](sys.argv[2:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
