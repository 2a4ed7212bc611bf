"""``python -m qrag_jax``: see :mod:`qrag_jax.index_cli`."""

from __future__ import annotations

from qrag_jax.index_cli import main

if __name__ == "__main__":
    raise SystemExit(main())
