"""Your own questions over your own documents.

    python -m experiments.own --data-dir questions.jsonl
    python -m experiments.own --data-dir FOLDER                      # with train.jsonl, validation.jsonl and test.jsonl

From scratch: 1000 updates, minutes on two CPU cores; --preset minilm starts from pretrained weights. The score depends on your questions.
To compare it with retrieval without training, run python -m experiments.baselines --preset RUN.

Each line is {"id": "q1", "question": "...", "chunks": ["...", "..."], "support": [1], "answer": "..."}: chunks is the document in order,
support holds the indices, from 0, of the chunks that answer the question. The answer is optional. From a single file, a tenth of the
questions becomes the validation set and a tenth the test set.
"""

from __future__ import annotations

from experiments.cli import main

if __name__ == "__main__":
    raise SystemExit(main("own", __doc__ or ""))
