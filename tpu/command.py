"""How the commands of this folder read their options and end. Exit codes are those of qrag_jax/rundir/ending.py, never argparse's 2."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from qrag_jax.rundir.ending import execute


class Parser(argparse.ArgumentParser):
    """Shows the description as it is written. Raises ValueError on a bad command line."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; {self.prog} --help lists the options")


def run_command(parser: Parser, run: Callable[[argparse.Namespace], int], argv: Sequence[str] | None = None) -> int:
    """Parses the command line (None: of this process) and runs the command; returns its exit code."""
    return execute(lambda: run(parser.parse_args(argv)))
