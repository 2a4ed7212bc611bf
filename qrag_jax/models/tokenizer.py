"""Text to token rows on the host."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from qrag_jax.models.tokenizer_files import check_tokenizer_file, no_panic
from qrag_jax.rundir.files import read_json, write_text
from qrag_jax.types import PAD

CACHE_SIZE = 1_000_000
"""Texts whose tokens are kept."""
BREAKS = r"\s!-/:-@\[-`{-~\u2010-\u205e\u3000-\u303f"  # white space and punctuation, which end a word for WordPiece


class TextTokenizer:
    """A Hugging Face fast tokenizer reduced to what retrieval needs: token rows with the model's special tokens around the text.

    Special tokens that occur in the text itself are ordinary characters, so a chunk that contains "[SEP]" cannot break a state.
    ``cache_size``: of how many texts the tokens are kept.
    """

    cache_size = CACHE_SIZE

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._cache: dict[str, np.ndarray] = {}
        bare = tokenizer.encode("a", add_special_tokens=False).ids
        full = tokenizer.encode("a").ids
        start = next((i for i in range(len(full)) if bare and full[i : i + len(bare)] == bare), None)
        if start is None:
            raise ValueError("the tokenizer gives the text 'a' no tokens, or leaves them out when it adds special tokens")
        self.prefix: tuple[int, ...] = tuple(full[:start])
        self.suffix: tuple[int, ...] = tuple(full[start + len(bare) :])
        # The tokens that a space at the end of a text adds; most tokenizers drop it.
        self.space: tuple[int, ...] = tuple(tokenizer.encode("a ", add_special_tokens=False).ids[len(bare) :])
        model = tokenizer.model
        # The Unigram model does not say which token that is; SentencePiece calls it <unk>.
        names = ("<unk>", "[UNK]") if isinstance(model, models.Unigram) else (model.unk_token,)
        self._unknown: int | None = next((tokenizer.token_to_id(name) for name in names if name is not None), None)
        longest = getattr(model, "max_input_chars_per_word", None)
        self._longest = longest or 0
        self._too_long = None if longest is None else re.compile(rf"[^{BREAKS}]{{{longest + 1}}}")
        if not self.suffix:
            raise ValueError("the tokenizer puts no special token after a text; states need one to separate their chunks")

    @classmethod
    def load(cls, path: str | Path) -> TextTokenizer:
        """From a tokenizer.json, or a folder that transformers can read a fast tokenizer from."""
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if file.is_file():
            check_tokenizer_file(file)
            try:
                with no_panic(str(file)):
                    return cls(tokenizers.Tokenizer.from_file(str(file)))
            except Exception as error:  # the Rust library raises bare Exception on any malformed file
                raise ValueError(f"{file}: not a tokenizer.json: {' '.join(str(error).split()) or repr(error)}") from error
        if not path.is_dir():
            raise ValueError(f"{path}: no such file; expected a tokenizer.json")
        return cls(load_auto_tokenizer(path).backend_tokenizer)

    def save(self, path: str | Path) -> None:
        """Writes a tokenizer.json, whole or not at all."""
        write_text(path, self._tokenizer.to_str(pretty=True))

    def to_json(self) -> str:
        """The text of a tokenizer.json."""
        return str(self._tokenizer.to_str())

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @property
    def ids(self) -> int:
        """1 + the largest token id: how many rows a network's table of words must have. More than vocab_size if ids are left out."""
        return 1 + max((*self._tokenizer.get_vocab().values(), *self.prefix, *self.suffix))

    def lookup(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Token ids of each text without special tokens; each distinct text is tokenised once."""
        texts = list(texts)
        cache = self._cache  # another thread may begin a new one
        fresh = [text for text in dict.fromkeys(texts) if text not in cache]
        if len(cache) + len(fresh) > self.cache_size:
            cache = self._cache = {}
            fresh = list(dict.fromkeys(texts))
        with no_panic("a text"):
            encoded = self._tokenizer.encode_batch_fast(fresh, add_special_tokens=False)
        for text, encoding in zip(fresh, encoded, strict=True):
            cache[text] = np.asarray(encoding.ids, np.int32)
        return [cache[text] for text in texts]

    def room(self, length: int) -> int:
        """The tokens of a text in a row of ``length``: those that are not special. Raises ValueError if there is no room for any."""
        room = length - len(self.prefix) - len(self.suffix)
        if room < 1:
            raise ValueError(f"max_tokens = {length}: must leave room for one token and the special ones")
        return room

    def rows(self, texts: Sequence[str], length: int) -> np.ndarray:
        """[len(texts), length] token rows with special tokens, cut to ``length``, padded with ``PAD``."""
        out = np.full((len(texts), length), PAD, np.int32)
        room = self.room(length)
        for row, body in zip(out, self.lookup(texts), strict=True):
            ids = (*self.prefix, *body[:room], *self.suffix)
            row[: len(ids)] = ids
        return out

    def reads(self, text: str) -> bool:
        """Whether the tokenizer reads every word; WordPiece gives one unknown token for a word of more than (usually) 100 characters."""
        return self._too_long is None or len(text) <= self._longest or self._too_long.search(text) is None

    def unknown(self, texts: Iterable[str]) -> list[int]:
        """The number of unknown tokens ([UNK]) in each text."""
        return [0 if self._unknown is None else int((ids == self._unknown).sum()) for ids in self.lookup(texts)]


def load_auto_tokenizer(folder: Path, **options: Any) -> Any:
    """transformers' tokenizer of a folder, without running code that lies in it or that it names on the hub.

    Raises ValueError, naming the file, when the tokenizer is such code.
    """
    if (folder / "tokenizer.json").is_file():
        check_tokenizer_file(folder / "tokenizer.json")
    for name in ("tokenizer_config.json", "config.json"):
        tree = read_json(folder / name) if (folder / name).is_file() else {}
        # Earlier versions of transformers wrote a list, of a slow and a fast tokenizer.
        named = tree.get("auto_map") if isinstance(tree, dict) else None
        if isinstance(named, list) or (isinstance(named, dict) and "AutoTokenizer" in named):
            raise ValueError(
                f"{folder / name}: auto_map: the tokenizer is Python code, which is not run here; give a folder with a tokenizer.json and "
                "no such entry"
            )
    from transformers import AutoTokenizer

    with no_panic(str(folder)):
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **options)


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """A lower-case WordPiece of at most ``vocab_size`` entries, a pure function of the texts (whatever their order).

    Characters come first, then the most frequent words (seven eighths of the remaining entries), then the most frequent word endings. The
    trainer of the tokenizers library breaks ties by the order of a hash map, so two runs on one text get different vocabularies; counting
    is reproducible.
    """
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    endings: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(1, len(word)):
            endings[f"##{word[start:]}"] += count
    by_count = lambda counts: sorted(counts, key=lambda piece: (-counts[piece], piece))
    characters = sorted(set("".join(words)))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    room = max(0, vocab_size - len(pieces)) * 7 // 8
    pieces = list(dict.fromkeys([*pieces, *by_count(words)[:room], *by_count(endings)]))[:vocab_size]
    tokenizer = tokenizers.Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, splitter, decoders.WordPiece()
    tokenizer.add_special_tokens(pieces[:5])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, pieces.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return TextTokenizer(tokenizer)
