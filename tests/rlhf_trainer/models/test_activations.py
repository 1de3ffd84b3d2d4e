"""What a pass holds, by hand numbers."""

from dataclasses import replace

import pytest
from transformers import GPT2Config
from zoo import ARCHITECTURES

from rlhf_api.v1alpha1.stages import AttentionImplementation
from rlhf_trainer.models.activations import (
    MicroBatch,
    activation_bytes,
    allowance,
    attends_eagerly,
    cache_bytes,
    evaluation_allowance,
    logit_bytes,
    matrix_bytes,
    rollout_rows,
    scoring_allowance,
)
from rlhf_trainer.models.sizes import Sizes

PLAIN = Sizes(
    layers=2,
    hidden=8,
    heads=2,
    keys=8,
    intermediate=None,
    vocabulary=50,
    width=2,
    windows=(None, None),
)


def test_logits_in_chunks_by_hand() -> None:
    few = MicroBatch(sequences=4, length=900, logits=512, in_chunks=True)
    most = replace(PLAIN, vocabulary=2**14)
    more = replace(PLAIN, vocabulary=2**14 + 1)
    for learning in (True, False):
        # 4 * 512 * 2^14 = 2^25 are kept.
        expected = logit_bytes(replace(few, in_chunks=False), most, learning=learning)
        assert logit_bytes(few, most, learning=learning) == expected
        assert logit_bytes(few, more, learning=learning) == 3 * 4 * 2**25
    wide = GPT2Config(vocab_size=2**14 + 1, n_embd=16, n_layer=5, n_head=2)
    # The same of whatever reads them; a rollout has one column of logits, and its cache.
    saved = allowance(wide, replace(few, in_chunks=False), "BF16") - allowance(wide, few, "BF16")
    assert saved == (3 * 2 * 512 + 3 * 4 * 64) * 4 * (2**14 + 1) - 3 * 4 * 2**25
    one = replace(few, logits=1)
    rollout = cache_bytes(few, Sizes.of(wide, "BF16")) + (2 + 3 * 4) * 4 * (2**14 + 1)
    assert evaluation_allowance(wide, one, "BF16") == rollout
    assert evaluation_allowance(wide, few, "BF16") == 3 * 4 * 2**25


def test_activations_by_hand() -> None:
    batch = MicroBatch(sequences=3, length=10)
    older = PLAIN

    assert activation_bytes(batch, older) == 34 * 30 * 8 * 2
    assert activation_bytes(batch, replace(older, width=4)) == 2 * 34 * 30 * 8 * 2
    # Two norms of 8 bytes a unit; queries, output and two inputs of 8, keys and values of 4, and
    # four times 20 in the feed-forward layer.
    gated = replace(older, keys=4, intermediate=20)
    assert activation_bytes(batch, gated) == 30 * 2 * (16 * 8 + 2 * (4 * 8 + 2 * 4 + 4 * 20))


def test_activations_with_checkpointing_by_hand() -> None:
    batch = MicroBatch(sequences=3, length=10)
    deep = replace(PLAIN, layers=5)

    # What one layer keeps, and the inputs of five.
    assert activation_bytes(batch, deep, checkpointing=True) == 34 * 30 * 8 + 5 * 30 * 8 * 2
    assert activation_bytes(batch, deep) == 5 * 34 * 30 * 8
    gpt2 = GPT2Config(vocab_size=100, n_embd=16, n_layer=5, n_head=2)
    plain, checkpointed = (
        allowance(gpt2, batch, "BF16", checkpointing=checkpointing)
        for checkpointing in (False, True)
    )
    assert plain - checkpointed == 4 * 34 * 30 * 16 - 5 * 30 * 16 * 2


@pytest.mark.parametrize(("columns", "chunk"), [(7, 7), (64, 64), (100, 64)])
def test_logits_by_hand(columns: int, chunk: int) -> None:
    batch = MicroBatch(sequences=3, length=120, logits=columns)
    sizes = PLAIN

    float32 = 3 * 4 * 3 * 50 * chunk
    assert logit_bytes(batch, sizes, learning=False) == 2 * 3 * 50 * columns + float32
    assert logit_bytes(batch, sizes, learning=True) == 3 * 2 * 3 * 50 * columns + float32
    assert logit_bytes(replace(batch, logits=0), sizes, learning=True) == 0
    # Keys and values of 3 * 120 tokens in 2 layers.
    assert cache_bytes(batch, sizes) == 2 * 360 * 2 * 8 * 2
    # In one of them of the last 7 alone, or of none.
    assert cache_bytes(batch, replace(sizes, windows=(None, 7))) == 2 * 3 * (120 + 7) * 8 * 2
    assert cache_bytes(batch, replace(sizes, windows=(None, 500))) == 2 * 360 * 2 * 8 * 2
    assert cache_bytes(batch, replace(sizes, windows=())) == 0


def test_learning_and_evaluation_are_what_they_are_made_of() -> None:
    gpt2 = GPT2Config(vocab_size=100, n_embd=16, n_layer=2, n_head=2)
    batch = MicroBatch(1, 10, logits=5)
    kept, logits, float32 = 34 * 10 * 16 * 2, 2 * 100 * 5, 3 * 4 * 100 * 5

    assert allowance(gpt2, batch, "BF16") == kept + 3 * logits + float32
    assert evaluation_allowance(gpt2, batch, "BF16") == logits + float32
    # Long prompts: keys and values of 1000 tokens outweigh the logits of 5.
    long = MicroBatch(1, 1000, logits=5)
    assert evaluation_allowance(gpt2, long, "BF16") == 2 * 1000 * 2 * 16 * 2 + 2 * 100 + 3 * 4 * 100


@pytest.mark.parametrize("length", [1000, 10])
@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize(("spare", "rows"), [(0, 10), (-1, 9), (2600, 10)])
def test_rows_of_a_rollout_by_hand(length: int, truncated: bool, spare: int, rows: int) -> None:
    gpt2 = GPT2Config(vocab_size=100, n_embd=16, n_layer=2, n_head=2)
    # Keys and values of all tokens, and what drawing one of 100 words takes.
    drawn = 4 * 4 + 8 + (20 if truncated else 0)
    row = 2 * length * 2 * 16 * 2 + 2 * 100 + drawn * 100
    assert rollout_rows(gpt2, 10 * row + spare, "BF16", length, truncated=truncated) == rows


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_an_estimate(name: str) -> None:
    config, batch = ARCHITECTURES[name], MicroBatch(2, 10, logits=5)

    assert allowance(config, batch, "BF16") > 0
    assert evaluation_allowance(config, batch, "BF16") > 0


@pytest.mark.parametrize(("width", "number"), [(2, 4 + 2), (4, 4)])
def test_what_eager_attention_keeps_by_hand(width: int, number: int) -> None:
    sizes, batch = replace(PLAIN, width=width), MicroBatch(3, 10, eager=True)
    matrix = 3 * 2 * 10 * 10 * number
    plain = replace(batch, eager=False)

    assert (matrix_bytes(batch, sizes), matrix_bytes(plain, sizes)) == (matrix, 0)
    assert activation_bytes(batch, sizes) == activation_bytes(plain, sizes) + 2 * matrix
    # One layer is computed anew at a time.
    anew = activation_bytes(batch, sizes, checkpointing=True)
    assert anew == activation_bytes(plain, sizes, checkpointing=True) + matrix


def test_held_out_rows_have_the_matrix_of_one_layer() -> None:
    gpt2 = GPT2Config(vocab_size=10, n_embd=16, n_layer=3, n_head=2)
    batch = MicroBatch(2, 1000, logits=1, eager=True)

    assert scoring_allowance(gpt2, batch, "FP32") == 2 * 2 * 1000 * 1000 * 4
    assert scoring_allowance(gpt2, replace(batch, eager=False), "FP32") < 1000


@pytest.mark.parametrize(
    ("name", "implementation", "eager"),
    [
        ("Llama", "SDPA", False),
        ("Llama", "Eager", True),
        ("Llama", "FlashAttention2", False),
        ("GPT-J", "SDPA", True),
        ("BLOOM", "SDPA", True),
        ("Mistral", "SDPA", False),
    ],
)
def test_eager_attention_is_what_was_asked_for_or_stands_in(
    name: str, implementation: AttentionImplementation, eager: bool
) -> None:
    assert attends_eagerly(ARCHITECTURES[name], implementation) is eager
    assert attends_eagerly(ARCHITECTURES[name], implementation, scores=True) is eager
