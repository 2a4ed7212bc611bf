"""Small tokenizers of the three kinds that encoders have, trained here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from qrag_jax.models.tokenizer import TextTokenizer, train_wordpiece

TEXTS = Path(__file__).parents[1] / "fixtures" / "texts"
ENGLISH = "Mary went to the kitchen. John took the milk there, and nobody saw him.\n" * 3 + Path(__file__).read_text(encoding="utf-8")


def _closed(tokenizer: Tokenizer) -> TextTokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return TextTokenizer(tokenizer)


def texts() -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(TEXTS.glob("*.txt"))}


def byte_level(corpus: Iterable[str]) -> TextTokenizer:
    """As GPT-2 and Qwen: every byte has a token, white space too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return _closed(tokenizer)


def unigram(corpus: Iterable[str]) -> TextTokenizer:
    """As XLM-RoBERTa: characters are made canonical, and a space before each word belongs to it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<s>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        corpus, trainers.UnigramTrainer(vocab_size=800, special_tokens=specials, unk_token="<unk>", show_progress=False)
    )
    return _closed(tokenizer)


def wordpiece(corpus: Iterable[str]) -> TextTokenizer:
    """As BERT."""
    return train_wordpiece(corpus, 800)


KINDS: dict[str, Callable[[Iterable[str]], TextTokenizer]] = {"wordpiece": wordpiece, "unigram": unigram, "byte level": byte_level}


@cache
def small(kind: str) -> TextTokenizer:
    """Trained on English and on the fixtures in four other scripts."""
    return KINDS[kind]([ENGLISH, *texts().values()])
