"""The README.md of an export: what was trained, how well it did, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qrag_jax.config import RunConfig
from qrag_jax.export.refusal import Refusal
from qrag_jax.rundir.files import markdown_text

# Columns of a results row, in the order in which they are shown.
COLUMNS = {
    "benchmark": "benchmark",
    "task": "task",
    "split": "split",
    "context_tokens": "tokens",
    "chunks": "chunks",
    "episodes": "questions",
    "budget": "T",
    "fact_em": "Fact EM",
    "fact_f1": "Fact F1",
    "fact_em_stopped": "Fact EM, stopped",
    "fact_f1_stopped": "Fact F1, stopped",
    "answer_em": "Answer EM",
    "answer_f1": "Answer F1",
    "ci95": "±95 %",
}

CARD = """---
library_name: qrag-jax
tags: [retrieval, multi-step-retrieval, reinforcement-learning, sentence-transformers]
---

# Q-RAG retriever: {task}

Two text encoders trained by [Q-RAG](https://arxiv.org/abs/2511.07328) (soft Q-learning over retrieval steps): `state_encoder` reads the
question and the chunks picked so far, `action_encoder` reads a candidate chunk. The value of picking chunk c in state s is
`Q(s, c) = <E_s(s), R(p) E_a(c)>`, with R the rotation by the chunk's position p relative to the chunks already picked.

- started from {embedder} ({architecture}), {width} wide; {pooling} pooling{normalized}, divided by {divisor:g}
- positions: {positions}; chunks of at most {chunk_tokens} tokens; checkpoint of update {step}
- stop retrieving when the best Q is below: {threshold}
- "not in the documents" when no pick reaches: {refusal}

## Figures

{figures}

## Loading

{loading}
A state is a row of token ids, not a text: the question's ids with the tokenizer's special tokens, then the ids of each picked chunk, in
document order, without the opening special token and with the closing one. Positions and rotation are not part of the encoders.
"""

QRAG_JAX = """The whole retriever, in JAX:

```python
import qrag_jax

retriever = qrag_jax.Retriever.from_pretrained("path/to/this/folder")  # or its name on the hub, "OWNER/NAME"
```
"""

SENTENCE_TRANSFORMERS = """The encoders, in PyTorch with sentence-transformers 5 or later (all that follows them included; compare by dot
product). `encode_query` uses `state_encoder`; `encode_document` and `encode` use `action_encoder`. Each subfolder loads alone, too.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
states = model.encode_query(["Where is the milk?"])
actions = model.encode_document(["Mary took the milk."])
```
"""

TRANSFORMERS = """The encoders, in PyTorch with transformers ({pooling} pooling of the token vectors{normalized} and the division by
{divisor:g} are yours to do; a pooler that transformers reports as missing is not used):

```python
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder/state_encoder")
encoder = AutoModel.from_pretrained("path/to/this/folder/state_encoder")
```
"""

REFERENCE = """For the authors' PyTorch code: `model_best.pt` uses the names of that code, `config.yaml` holds the settings of the retriever
(add your data sets), and `base_model/` holds the network and tokenizer that `algo.model.model_name` names. The target networks equal the
networks; the optimiser has not stepped; value heads and poolers, which that code does not use, are zero.
"""

# How each layout of an export can be loaded.
LOADING = {
    "export": (QRAG_JAX, SENTENCE_TRANSFORMERS, TRANSFORMERS),
    "hf": (TRANSFORMERS,),
    "sentence-transformers": (SENTENCE_TRANSFORMERS, TRANSFORMERS),
    "reference": (REFERENCE,),
}

HUB_CODE = """This architecture has no class in transformers: PyTorch runs the code that Alibaba-NLP publishes on the hub, and needs
`trust_remote_code=True`.
"""


def model_card(
    config: RunConfig,
    hf: Mapping[str, Any],
    pooling: str,
    threshold: float | None,
    step: int,
    rows: Sequence[Mapping[str, Any]],
    layout: str = "export",
    *,
    refusal: Refusal | None = None,
) -> str:
    """Markdown with the metadata that the hub reads. ``hf`` is the encoders' ``config.json``; ``layout`` is a key of :data:`LOADING`."""
    words = {"mean": "mean", "last": "last-token", "cls": "first-token"}[pooling]
    how = {"pooling": words, "normalized": ", length 1 (L2)" if config.model.normalize else "", "divisor": config.model.divisor}
    sections = [text.format(**how) for text in LOADING[layout]]
    if "auto_map" in hf:
        sections.append(HUB_CODE)
    return CARD.format(
        task=markdown_text(f"{config.data.benchmark} {config.data.task}"),
        embedder=markdown_text(config.model.embedder),
        architecture=markdown_text(hf["architectures"][0]),
        width=hf["hidden_size"],
        **how,
        positions=f"{config.qhead.positions}, {config.qhead.position_resolution}",
        chunk_tokens=config.data.chunk_tokens,
        step=step,
        threshold="never (no threshold was chosen)" if threshold is None else f"{threshold:g}",
        refusal="not measured" if refusal is None else str(refusal),
        figures=_table(rows) if rows else "Not measured.",
        loading="\n".join(sections),
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = {key: title for key, title in COLUMNS.items() if any(row.get(key) is not None for row in rows)}
    lines = [columns.values(), ["---"] * len(columns), *([_cell(row.get(key)) for key in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, (list, tuple)):
        return " to ".join(map(_cell, value))
    return markdown_text(value)
