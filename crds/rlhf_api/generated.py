"""Writing files that are made from the code, and finding those that are stale.

Called by the programs behind `make generate` and `make verify`.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Outputs = Mapping[str, tuple[Callable[[], str], Path]]
"""For each command what it writes, and where to unless told."""

ALL = "all"


def write_or_check(program: str, outputs: Outputs, arguments: Sequence[str] | None = None) -> int:
    """Run a command, or all; returns the exit status, 1 when `--check` finds a stale file."""
    parser = argparse.ArgumentParser(prog=program)
    parser.add_argument("command", choices=[*outputs, ALL])
    parser.add_argument("--output", type=Path, help="the file, in place of the usual one")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if stale")
    options = parser.parse_args(arguments)
    if options.command == ALL and options.output:
        parser.error(f"--output names one file, and {ALL} writes {len(outputs)}")
    stale = 0
    for command in outputs if options.command == ALL else [options.command]:
        make, usual = outputs[command]
        path: Path = options.output or usual
        text = make()
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale = 1
            sys.stderr.write(f"{path} is stale; run `{program} {command}` (or `make generate`)\n")
    return stale
