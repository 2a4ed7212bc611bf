"""Measures how fast the frozen reader generates text on this CPU, compared with transformers with the same weights.

    python -m experiments.speed.reader MODEL.gguf --run-dir runs/speed-reader
    python -m experiments.speed.reader FOLDER --run-dir runs/speed-reader --batch 1 --prompt-tokens 512

Both decode greedily in float32, for the same batch of random prompts of equal length and as many new tokens. They are measured in turn
(A B A B ...), after a first round that does not count. Tokens per second come from the best sample of each side, since other load on
the machine can only slow a sample down. The decoding rate leaves out the first step, its tokens and its time, since that is the prompt's.
The result is speed_reader.json in RUN_DIR.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from experiments.cli import execute, read, typed


@dataclass(frozen=True)
class Command:
    model: tyro.conf.Positional[Path]
    """Model folder or GGUF file."""
    run_dir: Path
    """Folder for speed_reader.json."""
    batch: int = 8
    """Prompts in a batch."""
    prompt_tokens: int = 128
    """Tokens of each prompt."""
    new_tokens: int = 64
    """New tokens after each prompt."""
    repeats: int = 5
    """Samples per figure. Calls that take seconds get fewer, at least 3."""

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("prompt_tokens", 1), ("new_tokens", 2), ("repeats", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}: must be {least} or more")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 64 bad input."""
    return execute(lambda: run(read(Command, argv, "experiments.speed.reader", __doc__ or "")), typed(Command))


def run(command: Command) -> None:
    import jax
    import numpy as np

    from experiments.speed.timing import alternate, describe_machine, missing_torch
    from qrag_jax.reader.flax_reader import find_reader
    from qrag_jax.rundir.files import check_folder, write_json
    from qrag_jax.rundir.log import say

    check_folder(command.run_dir)
    if reason := missing_torch():
        raise ValueError(reason)
    if jax.default_backend() != "cpu":
        raise ValueError(f"JAX runs on {jax.default_backend()!r}: this command measures CPUs only; set JAX_PLATFORMS=cpu")
    path = find_reader(command.model)
    machine = describe_machine(1024, command.repeats)
    ours, vocabulary = _ours(path)
    theirs = _theirs(path)
    rows = np.random.default_rng(0).integers(0, vocabulary, (command.batch, command.prompt_tokens), np.int32)
    written = [write(rows, command.new_tokens) for write in (ours, theirs)]
    say(f"{path}: {command.batch} prompts of {command.prompt_tokens} tokens, {command.new_tokens} new tokens each")
    found = alternate(
        {
            "ours": lambda: ours(rows, command.new_tokens),
            "theirs": lambda: theirs(rows, command.new_tokens),
            "ours_first": lambda: ours(rows, 1),
            "theirs_first": lambda: theirs(rows, 1),
        },
        command.repeats,
    )
    tokens = command.batch * (command.new_tokens - 1)
    rate = {side: tokens / (found[side]["min_s"] - found[f"{side}_first"]["min_s"]) for side in ("ours", "theirs")}
    whole = {side: command.batch * command.new_tokens / found[side]["min_s"] for side in ("ours", "theirs")}
    report = {
        "schema": 1,
        "machine": machine,
        "model": path.name,
        "batch": command.batch,
        "prompt_tokens": command.prompt_tokens,
        "new_tokens": command.new_tokens,
        "seconds": found,
        "decoded_tokens_per_s": rate,
        "tokens_per_s_with_prompt": whole,
        "ratio": rate["ours"] / rate["theirs"],
        "ratio_with_prompt": whole["ours"] / whole["theirs"],
        "same_tokens": float(np.mean(written[0] == written[1])),
    }
    write_json(command.run_dir / "speed_reader.json", report)
    for name, figures, times in (("decoding", rate, report["ratio"]), ("prompt and decoding", whole, report["ratio_with_prompt"])):
        say(f"{name}: {figures['ours']:.1f} tokens/s, transformers {figures['theirs']:.1f}, ratio {times:.2f}")
    say(f"both chose the same token in {report['same_tokens']:.1%} of places; speed_reader.json is in {command.run_dir}")


def _ours(path: Path) -> tuple[Callable[[Any, int], Any], int]:
    """A function (prompts, new tokens) -> the generated tokens, and the size of the vocabulary."""
    import jax
    import numpy as np

    from qrag_jax.models.decoder import Decoder
    from qrag_jax.models.decoder_loading import load_params, open_decoder
    from qrag_jax.reader.generate import generate

    source = open_decoder(path)
    model, params, never = Decoder(source.config), load_params(source), np.zeros(0, np.int32)

    def write(rows: Any, count: int) -> Any:
        return np.asarray(generate(model, params, rows, max_new_tokens=count, stop_ids=never, key=jax.random.key(0)).ids)

    return write, source.config.vocab_size


def _theirs(path: Path) -> Callable[[Any, int], Any]:
    """The same function with transformers' network and exactly the same tensors."""
    import numpy as np
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from qrag_jax.models.decoder_loading import open_decoder

    where = {"gguf_file": path.name} if path.is_file() else {}
    config = AutoConfig.from_pretrained(path.parent if path.is_file() else path, trust_remote_code=False, **where)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()
    state = {name: torch.from_numpy(np.array(tensor, np.float32)) for name, tensor in open_decoder(path).tensors.items()}
    lost = model.load_state_dict(state, strict=False)
    if lost.unexpected_keys or set(lost.missing_keys) - {"lm_head.weight"}:
        raise ValueError(f"{path}: transformers' network needs other tensors: {lost}")
    model.tie_weights()

    def write(rows: Any, count: int) -> Any:
        ids = torch.from_numpy(rows).long()
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        with torch.no_grad():
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        return out[:, rows.shape[1] :].numpy()

    return write


if __name__ == "__main__":
    raise SystemExit(main())
