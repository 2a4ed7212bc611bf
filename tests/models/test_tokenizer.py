"""Text to arrays: special tokens, vocabularies, pools, batches."""

from __future__ import annotations

import numpy as np
import pytest

from qrag_jax.config import DataConfig
from qrag_jax.models.tokenizer import TextTokenizer, train_wordpiece
from qrag_jax.retrieve.embed import embed_texts
from qrag_jax.train.batches import Pool, make_batch, padded_size
from qrag_jax.types import QAExample
from tests.support.small import small_tokenizer

TEXTS = ["Mary went to the kitchen.", "John took the milk there.", "Where is Mary?"] * 3


def test_rows_are_closed_cut_and_padded():
    tokenizer = train_wordpiece(TEXTS, 300)
    rows = tokenizer.rows(["Mary went to the kitchen.", "Mary"], 6)
    cls, sep = tokenizer.prefix[0], tokenizer.suffix[0]
    assert rows[0][0] == cls
    assert rows[0][-1] == sep  # cut, but still closed
    assert rows[1].tolist()[2:] == [sep, -1, -1, -1]


def test_special_tokens_in_text_are_ordinary():
    tokenizer = train_wordpiece(TEXTS, 300)
    row = tokenizer.rows(["Mary [SEP] [CLS] John"], 32)[0]
    assert (row == tokenizer.suffix[0]).sum() == 1
    assert (row == tokenizer.prefix[0]).sum() == 1


def test_vocabulary_is_a_function_of_the_text_alone(tmp_path):
    first, second = train_wordpiece(TEXTS, 300), train_wordpiece(reversed(TEXTS), 300)
    for name, tokenizer in (("a", first), ("b", second)):
        tokenizer.save(tmp_path / name)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
    loaded = TextTokenizer.load(tmp_path / "a")
    np.testing.assert_array_equal(loaded.rows(TEXTS, 12), first.rows(TEXTS, 12))


def test_a_broken_tokenizer_file_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer\.json"):
        TextTokenizer.load(tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        TextTokenizer.load(tmp_path / "absent.json")


def test_buckets():
    assert [padded_size(n) for n in (1, 16, 17, 65, 512, 513, 2049)] == [16, 16, 32, 128, 512, 640, 4096]


def test_a_batch_shares_one_pool():
    config = DataConfig(chunks=4, question_tokens=8, chunk_tokens=12, state_chunk_tokens=8)
    examples = [
        QAExample("a", "Where is Mary?", ("Mary went to the kitchen.", "Rain fell.", "Rain fell."), "kitchen", (0,)),
        QAExample("b", "Where is John?", ("Rain fell.", "John went home."), "home", (1,)),
    ]
    batch = make_batch(examples, 10, small_tokenizer(), config)
    assert batch.chunk_index.tolist() == [[0, 1, 1, 0], [1, 2, 0, 0]]
    assert batch.chunk_mask.tolist() == [[True, True, True, False], [True, True, False, False]]
    assert np.argwhere(batch.support).tolist() == [[0, 0], [1, 1]]
    assert batch.episode_id.tolist() == [10, 11]
    assert batch.chunk_pool_ids.shape == (16, 12)
    assert (batch.chunk_pool_ids[3:] == -1).all()
    with pytest.raises(ValueError, match=r"example 'a' has 3 chunks, this batch holds 2"):
        make_batch(examples, 0, small_tokenizer(), config, chunks=2)
    assert Pool.build(examples, small_tokenizer(), 12, at_least=100).ids.shape == (128, 12)


@pytest.mark.parametrize(
    ("chunks", "support", "message"), [((), (), "chunks is empty"), (("a",), (1,), "must lie in"), (("a", "b"), (1, 0), "ascending")]
)
def test_impossible_examples_are_refused(chunks, support, message):
    with pytest.raises(ValueError, match=message):
        QAExample("x", "q", chunks, "", support)


def test_embeddings_come_back_in_order():
    # An "encoder" that returns the row's length and first token shows which row went where.
    tokenizer = small_tokenizer()
    texts = ["a", "John went back to the garden and then to the kitchen.", "Mary", "John went"] * 200
    fake = lambda rows: np.stack([(rows >= 0).sum(1), rows[:, 1]], axis=1).astype(np.float32)
    found = embed_texts(fake, tokenizer, texts, 12)  # type: ignore[arg-type]
    rows = tokenizer.rows(texts, 12)
    np.testing.assert_array_equal(found, fake(rows))
    with pytest.raises(ValueError, match="texts is empty"):
        embed_texts(fake, tokenizer, [], 12)  # type: ignore[arg-type]
