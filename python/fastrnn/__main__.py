"""The command ``fastrnn``, also ``python -m fastrnn``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import fastrnn
from fastrnn.bench import cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments`, by default the process's own, and return its exit code."""
    parser = argparse.ArgumentParser(prog="fastrnn", description=fastrnn.__doc__)
    parser.add_argument("--version", action="version", version=fastrnn.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    bench = commands.add_parser(
        "bench", help="compare with other engines", description=cli.DESCRIPTION
    )
    cli.add_arguments(bench)
    commands.add_parser("config", help="print version, instruction set and threads")
    options = parser.parse_args(arguments)
    try:
        if options.command == "bench":
            return cli.run(bench, options)
        fastrnn.show_config()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
