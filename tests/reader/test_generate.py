"""Generation and the Flax reader on a network of two tiny layers: stops, draws, batches, borders."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from qrag_jax.reader import flax_reader, memory
from qrag_jax.reader.chat import chat_tokens, load_tokenizer, stop_tokens
from qrag_jax.reader.flax_reader import FlaxReader, find_reader, fingerprint
from qrag_jax.reader.generate import generate, nucleus, pad_prompts, prompt_bucket
from qrag_jax.reader.memory import MemoryPlan, check_fit, plan_memory
from qrag_jax.reader.protocol import Prompt
from tests.support.chat import WORDS, tiny, write_chat_model

PROMPTS = pad_prompts([[5, 6, 7], [8], [9, 10, 11, 12], [13, 14]], 4, 6)
NONE = np.zeros(0, np.int32)


def text(**options: Any) -> Any:
    options = {"max_new_tokens": 12, "stop_ids": NONE, "key": jax.random.key(0)} | options
    return generate(*tiny(), options.pop("rows", PROMPTS), **options)


def test_greedy_text_is_what_the_whole_network_says_step_by_step() -> None:
    """The oracle has no cache: it reads each row from the start for every token."""
    model, params = tiny()
    apply = jax.jit(lambda ids: model.apply({"params": params}, ids))
    rows = [[int(token) for token in row if token >= 0] for row in PROMPTS]
    for _ in range(12):
        logits = apply(np.array([row + [-1] * (16 - len(row)) for row in rows], np.int32))
        rows = [[*row, int(np.argmax(logits[i, len(row) - 1]))] for i, row in enumerate(rows)]
    np.testing.assert_array_equal(text().ids, [row[-12:] for row in rows])


def test_a_row_ends_at_its_stop_token_and_the_others_go_on() -> None:
    free = np.asarray(text().ids)
    stop = free[0, 5]
    ended = text(stop_ids=np.array([stop, 0]))
    for row, whole, stopped in zip(np.asarray(ended.ids), free, np.asarray(ended.stopped), strict=True):
        end = next((i for i, token in enumerate(whole) if token in (stop, 0)), 12)
        assert row.tolist() == [*whole[:end], *[-1] * (12 - end)]
        assert stopped == (end < 12)
    assert ended.stopped[0]


def test_stop_tokens_may_differ_by_row() -> None:
    free = np.asarray(text().ids)
    ended = text(stop_ids=np.stack([free[:, 0], np.full(4, -7)], axis=1))
    assert ended.stopped.all()
    assert (np.asarray(ended.ids) == -1).all()
    one = text(stop_ids=np.array([[free[0, 0]], [-7], [-7], [-7]]))
    assert one.stopped.tolist() == [True, False, False, False]


def test_a_row_of_padding_yields_nothing_and_keeps_no_one_waiting() -> None:
    rows = np.concatenate([PROMPTS, np.full((1, 6), -1, np.int32)])
    more = text(rows=rows)
    np.testing.assert_array_equal(more.ids[:4], text().ids)
    assert (np.asarray(more.ids[4]) == -1).all()
    assert not more.stopped[4]


def test_one_compile_a_shape() -> None:
    shapes = [(1, 5, 2), (3, 5, 2), (3, 7, 2), (3, 7, 3)]
    before = generate._cache_size()
    for seed in range(2):
        for rows, length, count in shapes:
            prompts = np.random.default_rng(seed).integers(5, 40, (rows, length)).astype(np.int32)
            text(rows=prompts, max_new_tokens=count, stop_ids=np.array([seed]), key=jax.random.key(seed))
    assert generate._cache_size() - before == len(shapes)


def test_draws_follow_the_row_s_key_whatever_stands_beside_it() -> None:
    keys = jax.random.split(jax.random.key(7), 4)
    drawn = np.asarray(text(temperature=1.0, key=keys).ids)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_array_equal(np.asarray(text(rows=PROMPTS[order], temperature=1.0, key=keys[order]).ids), drawn[order])
    other = np.asarray(text(temperature=1.0, key=jax.random.split(jax.random.key(8), 4)).ids)
    assert (drawn != other).any()
    assert (drawn != np.asarray(text().ids)).any()
    np.testing.assert_array_equal(text(temperature=1.0, top_p=1e-6, key=keys).ids, text().ids)


def test_draws_have_the_chances_of_the_softmax() -> None:
    """4 000 rows of one prompt: each token's count lies within 5 standard deviations, sqrt(n p (1 - p)), of n p."""
    model, params = tiny()
    count = 4000
    drawn = np.asarray(text(rows=np.tile(PROMPTS[2:3], (count, 1)), max_new_tokens=1, temperature=2.0, key=jax.random.key(1)).ids[:, 0])
    chances = jax.nn.softmax(model.apply({"params": params}, PROMPTS[2:3])[0, -1] / 2.0)
    expected = count * np.asarray(chances, np.float64)
    counts = np.bincount(drawn, minlength=len(WORDS))
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected * (1 - expected / count)) + 1).all()


def test_nucleus_keeps_the_fewest_tokens_that_hold_the_mass() -> None:
    """Probabilities .5 .3 .15 .05: a top_p of 0.8 needs the first two (0.5 < 0.8 <= 0.8), 0.81 the first three, 0.5 the first."""
    logits = jnp.log(jnp.array([[0.15, 0.5, 0.05, 0.3]]))
    for top_p, kept in ((0.4, [1]), (0.79, [1, 3]), (0.81, [0, 1, 3]), (1.0, [0, 1, 2, 3])):
        assert np.flatnonzero(np.isfinite(nucleus(logits, top_p)[0])).tolist() == kept


@given(st.integers(1, 200_000))
def test_prompt_buckets_hold_the_prompt_and_waste_at_most_half(length: int) -> None:
    size = prompt_bucket(length)
    assert length <= size <= max(64, 3 * length // 2)
    assert prompt_bucket(size) == size


@pytest.mark.parametrize(
    ("field", "value"), [("max_new_tokens", 0), ("temperature", -0.5), ("top_p", 0.0), ("top_p", 1.5)], ids=lambda value: str(value)
)
def test_bad_settings_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} = {value}"):
        text(**{field: value})


# The reader


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_chat_model(tmp_path)


def prompts(*lengths: int) -> list[Prompt]:
    rng = np.random.default_rng(0)
    return [Prompt("w1 w2" if length % 2 else None, " ".join(f"w{i}" for i in rng.integers(3, 40, length))) for length in lengths]


def test_chat_tokens_by_hand(folder: Path) -> None:
    """<|system|> 1, <|user|> 2, <|assistant|> 3, <|end|> 4, w1 is 6; thinking, which would add w42, is off."""
    tokenizer = load_tokenizer(folder)
    assert chat_tokens(tokenizer, Prompt("w1 w2", "w7")) == [1, 6, 7, 4, 2, 12, 4, 3]
    assert chat_tokens(tokenizer, Prompt(None, "w7")) == [2, 12, 4, 3]
    assert stop_tokens(folder, tokenizer) == (4,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [4, 9]}')
    assert stop_tokens(folder, tokenizer) == (4, 9)


def test_answers_come_in_order_and_do_not_depend_on_the_batch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = prompts(3, 30, 1, 12, 7)
    batched = FlaxReader.from_pretrained(folder, max_new_tokens=8, batch=2)
    assert f"reader {folder}: " in capsys.readouterr().out
    answers = batched.answer(asked)
    alone = FlaxReader.from_pretrained(folder, max_new_tokens=8, batch=1)
    assert answers == [answer for prompt in asked for answer in alone.answer([prompt])]
    assert [answer.prompt_tokens for answer in answers] == [len(chat_tokens(batched.tokenizer, prompt)) for prompt in asked]
    model, params = tiny()
    rows = pad_prompts([chat_tokens(batched.tokenizer, prompt) for prompt in asked], 5, 64)
    direct = generate(model, params, rows, max_new_tokens=8, stop_ids=np.array([4]), key=jax.random.key(0))
    for answer, ids, stopped in zip(answers, np.asarray(direct.ids), np.asarray(direct.stopped), strict=True):
        assert answer.text.split() == [WORDS[i] for i in ids if i > 4]
        assert (answer.completion_tokens, answer.finish) == (np.sum(ids >= 0), "stop" if stopped else "length")
    assert batched.answer([]) == []
    if len(jax.devices()) > 1:
        split = FlaxReader.from_pretrained(
            folder, max_new_tokens=8, batch=2, mesh=jax.make_mesh((2,), ("model",), devices=jax.devices()[:2])
        )
        assert split.answer(asked) == answers


def test_sampled_answers_follow_the_seed_whatever_the_batch(folder: Path) -> None:
    asked = prompts(3, 9, 5)
    sampled = lambda **options: FlaxReader.from_pretrained(folder, max_new_tokens=8, temperature=1.5, **options).answer(asked)
    assert sampled(seed=1, batch=1) == sampled(seed=1, batch=4) != sampled(seed=2, batch=4)


def test_a_prompt_beyond_the_context_is_refused_not_cut(folder: Path) -> None:
    """Context 128; 3 tokens of chat around the words: 128 - 8 - 3 = 117 words fit, 118 do not."""
    reader = FlaxReader.from_pretrained(folder, max_new_tokens=8)
    words = lambda count: Prompt(None, " ".join(["w5"] * count))
    assert reader.answer([words(117)])[0].prompt_tokens == 120
    with pytest.raises(ValueError, match="prompt 1 has 121 tokens"):
        reader.answer([words(2), words(118)])


def test_the_name_tells_weights_and_settings_apart(folder: Path) -> None:
    name = lambda **options: FlaxReader.from_pretrained(folder, **options).name
    assert len({name(), name(max_new_tokens=9), name(dtype=jnp.bfloat16), name(temperature=0.5), name(temperature=0.5, seed=3)}) == 5
    before = fingerprint(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({key: tensor + 1 for key, tensor in tensors.items()}, folder / "model.safetensors")
    assert fingerprint(folder) != before


def test_the_small_model_of_a_package_is_found_by_its_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_wheel").mkdir()
    (tmp_path / "a_wheel/__init__.py").write_text("raise AssertionError('imported')")
    (tmp_path / "a_wheel/small.gguf").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(flax_reader, "SMALL_WHEEL", "a_wheel")
    assert find_reader("SmolLM2") == tmp_path / "a_wheel/small.gguf"


def test_what_is_not_a_chat_model_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in (tmp_path / "nowhere", "no such reader"):
        with pytest.raises(ValueError, match="no such folder or file"):
            find_reader(name)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a file must be a \.gguf"):
        find_reader(tmp_path / "weights.bin")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        FlaxReader.from_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="no tokenizer"):
        FlaxReader.from_pretrained(folder)


def test_without_pytorch_a_gguf_file_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"model\.gguf: transformers needs PyTorch .* pip install 'qrag-jax\[reader,torch\]'"):
        load_tokenizer(tmp_path / "model.gguf")


def test_a_template_s_refusal_is_a_value_error(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}w1"
    with pytest.raises(ValueError, match="no system here"):
        chat_tokens(tokenizer, Prompt("w1", "w2"))


# Memory


def test_the_plan_in_bytes_by_hand() -> None:
    """48 words x 32 wide, 2 layers of q 32 x 32, k and v 32 x 16, o 32 x 32, MLP 3 x 32 x 48, norms 2 x 32, and the last norm:
    48 * 32 + 2 * (1024 + 2 * 512 + 1024 + 4608 + 64) + 32 = 17 056 numbers of 4 bytes. Cache: keys and values of 2 layers,
    3 rows, 64 + 16 slots, 2 heads of 8: 2 * 2 * 3 * 80 * 16 = 15 360 numbers. On two devices all but the norms (160 numbers) is halved."""
    plan = plan_memory(tiny()[0].config, batch=3, prompt_tokens=64, max_new_tokens=16)
    assert (plan.weights, plan.cache) == (4 * 17_056, 4 * 15_360)
    half = plan_memory(tiny()[0].config, batch=3, prompt_tokens=64, max_new_tokens=16, dtype=jnp.bfloat16, devices=2)
    assert (half.weights, half.cache) == (2 * (16_896 // 2 + 160), 2 * 15_360 // 2)


@pytest.mark.parametrize("length", [256, 768])
def test_the_plan_is_near_what_the_compiler_sets_aside(length: int) -> None:
    model, params = tiny()
    rows = jax.ShapeDtypeStruct((4, length), jnp.int32)
    compiled = generate.lower(model, params, rows, max_new_tokens=32, stop_ids=NONE, key=jax.random.key(0)).compile()
    plan = plan_memory(model.config, batch=4, prompt_tokens=length, max_new_tokens=32)
    assert 0.5 < (plan.cache + plan.activations) / compiled.memory_analysis().temp_size_in_bytes < 2


def test_what_cannot_fit_is_refused_before_it_is_loaded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  900 kB\nMemAvailable:  100 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(flax_reader, "load_params", lambda *_, **__: pytest.fail("was loaded"))
    with pytest.raises(ValueError, match=r"needs .* per device, but only .* are free: use bfloat16"):
        FlaxReader.from_pretrained(folder)
    check_fit("it", 5, None, "")
    assert str(MemoryPlan(5_000_000_000, 10**9, 10**8)) == "6.10 GB per device (weights 5.00 GB, cache 1.00 GB, activations 0.10 GB)"
