"""Your own questions over your own documents.

    python -m experiments.own --data-dir questions.jsonl
    python -m experiments.own --data-dir FOLDER                      # with train.jsonl, validation.jsonl and test.jsonl

From scratch: 1000 updates, minutes on two CPU cores; --preset minilm starts from pretrained weights. What to expect depends on the
questions; python -m experiments.baselines --preset RUN says what they are worth without training.

A line is {"id": "q1", "question": "...", "chunks": ["...", "..."], "support": [1], "answer": "..."}: the document in order, and the indices
of the chunks that answer. The answer may be missing. Of a single file, a tenth is validation and a tenth is test.
"""

from __future__ import annotations

from experiments.cli import main

if __name__ == "__main__":
    raise SystemExit(main("own", __doc__ or ""))
