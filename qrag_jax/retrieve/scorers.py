"""Who scores a document: its store, the host, or devices, of this process or of several."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from qrag_jax.config import QHeadConfig
from qrag_jax.retrieve.coded_scan import CodedScorer
from qrag_jax.retrieve.device_rows import DeviceRows
from qrag_jax.retrieve.device_scan import DeviceScorer
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.scan import Hidden, HostScorer
from qrag_jax.retrieve.search import Scorer
from qrag_jax.retrieve.store_scan import StoreScorer
from qrag_jax.retrieve.stored_rows import CodedRows
from qrag_jax.retrieve.types import Document

HOST_ROWS = 2**14  # documents of up to so many chunks are scored on the host, where their vectors are


class Scorers:
    """Makes scorers, and keeps the rows of the last index on the devices until another index is searched."""

    def __init__(self) -> None:
        self._placed: DeviceRows | None = None

    def of(self, document: Document, qhead: QHeadConfig, hidden: Hidden, devices: Sequence[jax.Device] | None) -> Scorer:
        """If the vectors are in a store, the store is asked. Without an accelerator, or if the document is small, the host reads the rows
        in place. Otherwise, and always if ``devices`` are given, rows are split over devices (None: those of this process).

        Raises ValueError when ``devices`` are given and the vectors are in a store.
        """
        if isinstance(document, Index) and document.meta.store is not None:
            if devices is not None:
                raise ValueError(f"{document.path}: its vectors are in {document.meta.place}, which one process searches; ask on one host")
            return StoreScorer(document.meta.store, document.rows, qhead, hidden, document.restarts)
        if devices is None and (jax.default_backend() == "cpu" or len(document) <= HOST_ROWS):
            rows = document.rows
            if isinstance(rows, CodedRows):
                return CodedScorer(rows, qhead, hidden, document.restarts)
            return HostScorer(rows, qhead, hidden, document.restarts)
        return DeviceScorer(self._on_devices(document, devices), qhead, hidden, document.restarts)

    def _on_devices(self, document: Document, devices: Sequence[jax.Device] | None) -> DeviceRows:
        if not isinstance(document, Index):
            return DeviceRows(document.rows, devices)
        if self._placed is None or self._placed.rows is not document.rows:
            self._placed = None  # makes room first
            self._placed = DeviceRows(document.rows, devices)
        return self._placed
