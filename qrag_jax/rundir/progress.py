"""What the training loop must remember between two calls, apart from the train state; checkpoints hold it as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class SavedWindow:
    """The updates since the last record: their metrics by name, one value per update; texts embedded; seconds."""

    metrics: dict[str, list[float]] = field(default_factory=dict)
    texts: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Progress:
    """The state of the training loop, apart from the train state. ``Progress()`` is that of a new run."""

    seconds: float = 0.0
    """Time spent in the loop."""
    best: float = -1.0
    """Highest validation score so far."""
    best_step: int = 0
    """The update with that score, which is the step of its checkpoint "best"."""
    reached: int = 0
    """How many validations in a row, up to the latest, have reached ``train.stop_at``."""
    threshold: float | None = None
    """Stop threshold of the latest validation; None with a budget of 1, where there is nothing to stop."""
    window: SavedWindow = field(default_factory=SavedWindow)

    def to_json(self) -> dict[str, Any]:
        """The tree that :meth:`from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Any) -> Progress:
        """Raises ValueError when ``tree`` does not have exactly these fields."""
        names = [item.name for item in fields(cls)]
        if not isinstance(tree, dict) or set(tree) != set(names):
            found = sorted(tree) if isinstance(tree, dict) else tree
            raise ValueError(f"its progress is {found}, expected the fields {sorted(names)}; another version wrote it")
        try:
            return cls(**{**tree, "window": SavedWindow(**tree["window"])})
        except TypeError as error:
            raise ValueError(f"its window of metrics cannot be read ({error}); another version has written it") from error
