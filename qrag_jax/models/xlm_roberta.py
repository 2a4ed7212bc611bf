"""XLM-RoBERTa (Conneau et al. 2020): BERT's network with another vocabulary; multilingual-e5 is one.

Two differences to BERT: position ids start at padding_idx + 1 (rows below are never looked up), and there is one token type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qrag_jax.models.bert import BertConfig, BertEncoder, bert_weights

XlmRobertaEncoder = BertEncoder
xlm_roberta_weights = bert_weights


@dataclass(frozen=True)
class XlmRobertaConfig(BertConfig):
    """The fields of a Hugging Face XLM-RoBERTa ``config.json`` that its maths depends on."""

    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5
    position_offset: int = 2

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> XlmRobertaConfig:
        """Raises ValueError by name on a setting that would change the maths and is not implemented."""
        # Defaults of transformers' XLMRobertaConfig where they differ from BERT's.
        config = {"type_vocab_size": 2, "pad_token_id": 1, **config}
        padding = config["pad_token_id"]
        if type(padding) is not int or padding < 0:
            raise ValueError(f"config.json: pad_token_id = {padding!r}: must be a whole number; positions of XLM-RoBERTa count from it")
        return cls(**cls._fields(config), position_offset=padding + 1)

    def to_hf(self) -> dict[str, Any]:
        """A ``config.json`` that transformers' AutoModel builds the same network from."""
        padding = self.position_offset - 1
        names = {"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta"}
        return super().to_hf() | names | {"pad_token_id": padding, "bos_token_id": 0, "eos_token_id": 2}
