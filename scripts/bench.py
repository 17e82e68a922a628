#!/usr/bin/env python3
"""Measures us against rivals, as ratios within one run: `scripts/bench.py NAME [ARGUMENTS]`.

`scripts/bench.py export` and so on: NAME stands for the module scripts/bench_NAME.py, which has a
`main(arguments)` and says in its docstring what it measures. Run it by the Python of `.venv`.
"""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Run one of the benches."""
    names = sorted(
        path.stem.removeprefix("bench_") for path in (ROOT / "scripts").glob("bench_*.py")
    )
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        sys.exit(f"usage: scripts/bench.py {'|'.join(names)} [ARGUMENTS]")
    sys.path.insert(0, str(ROOT))
    importlib.import_module(f"scripts.bench_{sys.argv[1]}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
