"""Import a released Q-RAG model, write a trained retriever for PyTorch, or upload one.

The same as qrag import, qrag export and qrag push.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from qrag_jax.config.command_line import read_command, refuse_urls
from qrag_jax.export.commands import Exchange, Import, Push, ToTorch, run_exchange
from qrag_jax.rundir.ending import execute
from qrag_jax.rundir.log import say as say_line


def main(args: Sequence[str] | None = None, say: Callable[[str], None] = say_line) -> int:
    """Runs a command and returns its exit code: 0 done, 1 PyTorch and JAX differ (the files stay), 64 bad input (one line on stderr)."""
    words = sys.argv[1:] if args is None else args

    def run() -> int:
        known = {"import": Import, "to-torch": ToTorch, "push": Push}
        command: Exchange = read_command(known, words, "python -m qrag_jax.export", __doc__ or "")
        refuse_urls(command)
        return run_exchange(command, say)

    return execute(run)


if __name__ == "__main__":
    raise SystemExit(main())
