"""For mixtures: one more HotpotQA file of training questions.

A tenth of the file is its test and another tenth its validation set. They are no published sets.
"""

from __future__ import annotations

from functools import partial

from qrag_jax.data.multihop import questions as multihop
from qrag_jax.data.multihop.hotpotqa import read_hotpotqa

HOTPOTQA_MORE = multihop.QuestionFiles(
    name="hotpotqa_more",
    folder="hotpotqa",
    files=(("hotpot_new_train.json",),),
    home="https://hotpotqa.github.io",
    read=read_hotpotqa,
    after_title=" ",
)
load = partial(multihop.load, HOTPOTQA_MORE)
