"""What a pass of a model holds beside weights, gradients and optimizer: what its layers keep, its
logits, and the keys and values of a rollout.

Called by the stages for `memory.check_memory`, and by PPO for the size of a wave. Pure arithmetic;
a lower bound, as `memory`.
"""

from dataclasses import dataclass, replace

from transformers import PretrainedConfig

from rlhf_api.v1alpha1.stages import AttentionImplementation, Precision
from rlhf_trainer.models.memory import weightless_model
from rlhf_trainer.models.sizes import Sizes
from rlhf_trainer.rl.hidden_logprobs import CHUNK_NUMBERS
from rlhf_trainer.rl.logprobs import TIME_CHUNK

_FLOAT32_CHUNKS = 3
"""How many copies of a chunk of logits there are at once: log-softmax, softmax and gradient."""
_DRAW = 4 * 4 + 8
"""Bytes that drawing a token takes for each word of the vocabulary."""
_ORDER = 4 + 2 * 8
"""The same of putting words in order: a copy of the probabilities, and their running sums."""


@dataclass(frozen=True)
class MicroBatch:
    """The largest piece of work that a rank holds activations of.

    Attributes:
        sequences: in one forward pass; two a pair.
        length: tokens of the longest sequence that the data really holds.
        logits: columns of a sequence that have logits; 0 where the model gives scores.
        in_chunks: whether many logits are made in chunks, of hidden states.
        eager: whether attention has a number for each pair of tokens, as `attends_eagerly` says.
    """

    sequences: int
    length: int
    logits: int = 0
    in_chunks: bool = False
    eager: bool = False

    @classmethod
    def fullest(
        cls,
        tokens: int,
        rows: int,
        length: int,
        logits: int = 0,
        *,
        in_chunks: bool = False,
        eager: bool = False,
    ) -> "MicroBatch":
        """With as many of at most `rows` sequences of `length` as `tokens` hold, and at least one.

        Of shorter ones there are more, in no more tokens.
        """
        sequences = min(rows, max(1, tokens // max(1, length)))
        return cls(sequences, length, logits, in_chunks, eager)


def attends_eagerly(
    config: PretrainedConfig, implementation: AttentionImplementation, *, scores: bool = False
) -> bool:
    """Whether Eager attention computes a model, since it was asked for or has to stand in."""
    if implementation != "SDPA":
        return implementation == "Eager"
    # Where nothing is asked for, transformers chooses SDPA if the model has it.
    model = weightless_model(config, scores=scores)
    return bool(model.config._attn_implementation == "eager")


def activation_bytes(micro_batch: MicroBatch, sizes: Sizes, *, checkpointing: bool = False) -> int:
    """What a forward pass keeps for the backward pass.

    With gradient checkpointing that is the input of each layer, and all of the one layer that is
    computed anew.

    34 bytes a token, layer and hidden unit in BF16 (Korthikanti et al., "Reducing Activation
    Recomputation in Large Transformer Models", 2022, equation 2 without the attention matrix, which
    SDPA does not keep), twice that in FP32. With RMSNorm and a gated feed-forward layer, as Llama
    has them: two norms keep their input and what they make of it in fp32, attention its queries,
    keys, values and output, the layers their inputs, and the feed-forward layer four of its width.
    Eager attention keeps its matrix besides.
    """
    tokens = micro_batch.sequences * micro_batch.length
    layer = tokens * _layer_bytes(sizes) + matrix_bytes(micro_batch, sizes)
    if checkpointing:
        return layer + tokens * sizes.layers * sizes.hidden * sizes.width
    return layer * sizes.layers


def _layer_bytes(sizes: Sizes) -> int:
    """What one layer keeps of a token."""
    if sizes.intermediate is None:
        return 34 * sizes.hidden * sizes.width // 2
    norms = 2 * (4 + 4) * sizes.hidden
    numbers = 4 * sizes.hidden + 2 * sizes.keys + 4 * sizes.intermediate
    return norms + sizes.width * numbers


def matrix_bytes(micro_batch: MicroBatch, sizes: Sizes) -> int:
    """The attention weights of one layer: softmax makes them in fp32, and in BF16 there is a copy
    by which the values are multiplied. 0 where attention is not Eager."""
    if not micro_batch.eager:
        return 0
    numbers = micro_batch.sequences * sizes.heads * micro_batch.length**2
    return numbers * (4 if sizes.width == 4 else 4 + sizes.width)


def logit_bytes(micro_batch: MicroBatch, sizes: Sizes, *, learning: bool) -> int:
    """Logits, and what log-probabilities take of one chunk of time in fp32 (`rl.logprobs`).

    In a backward pass there are the logits, their gradient as the chunks give it and the one as the
    head takes it. Where they are made in chunks (`rl.hidden_logprobs`) a chunk of them is all.
    """
    words = micro_batch.sequences * sizes.vocabulary
    if micro_batch.in_chunks and words * micro_batch.logits > CHUNK_NUMBERS:
        return _FLOAT32_CHUNKS * 4 * CHUNK_NUMBERS
    chunk = _FLOAT32_CHUNKS * 4 * words * min(micro_batch.logits, TIME_CHUNK)
    return (3 if learning else 1) * sizes.width * words * micro_batch.logits + chunk


def cache_bytes(micro_batch: MicroBatch, sizes: Sizes) -> int:
    """Keys and values of a rollout's sequences."""
    length = micro_batch.length
    kept = sum(length if window is None else min(length, window) for window in sizes.windows)
    return 2 * micro_batch.sequences * kept * sizes.keys * sizes.width


def allowance(
    config: PretrainedConfig,
    micro_batch: MicroBatch,
    precision: Precision,
    *,
    checkpointing: bool = False,
) -> int:
    """Bytes beside weights and optimizer that a learning pass takes at its peak."""
    sizes = Sizes.of(config, precision)
    kept = activation_bytes(micro_batch, sizes, checkpointing=checkpointing)
    return kept + logit_bytes(micro_batch, sizes, learning=True)


def scoring_allowance(
    config: PretrainedConfig, micro_batch: MicroBatch, precision: Precision
) -> int:
    """The same of a pass that neither learns nor keeps keys and values, over held-out rows."""
    sizes = Sizes.of(config, precision)
    return max(logit_bytes(micro_batch, sizes, learning=False), matrix_bytes(micro_batch, sizes))


def evaluation_allowance(
    config: PretrainedConfig, micro_batch: MicroBatch, precision: Precision
) -> int:
    """The same of a rollout, which keeps keys and values, or of its evaluation."""
    sizes = Sizes.of(config, precision)
    scoring = scoring_allowance(config, micro_batch, precision)
    rollout = cache_bytes(micro_batch, sizes) + logit_bytes(
        replace(micro_batch, logits=1, in_chunks=False), sizes, learning=False
    )
    return max(scoring, rollout)


def rollout_rows(
    config: PretrainedConfig,
    budget: int,
    precision: Precision,
    length: int,
    *,
    truncated: bool = False,
) -> int:
    """How many rows of `length` tokens may be decoded together within `budget` bytes.

    A row has its keys and values, and one token's logits with what is drawn from them: four numbers
    in fp32 and a distribution function in fp64 for each word of the vocabulary. Where only the
    likeliest are drawn from (`truncated`), they are also put in order.
    """
    sizes = Sizes.of(config, precision)
    word = sizes.width + _DRAW + (_ORDER if truncated else 0)
    row = cache_bytes(MicroBatch(1, length), sizes) + word * sizes.vocabulary
    return budget // row
