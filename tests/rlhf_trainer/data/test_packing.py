"""Groups, and the proof that rows in one sequence do not see each other."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from rlhf_trainer.data.packing import (
    RowLayout,
    block_causal_mask,
    collate_packed,
    groups_of,
    pack,
)
from rlhf_trainer.data.tokenize.tokenized import SFTExample

VOCABULARY = 61
ENDS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, **ENDS}
WIDE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    **ENDS,
}
LLAMA: dict[str, Any] = {"num_key_value_heads": 2, "intermediate_size": 64, **WIDE}

PACKABLE: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**LLAMA),
    "qwen2": Qwen2Config(**LLAMA),
    "qwen3": Qwen3Config(head_dim=8, **LLAMA),
    "gpt2": GPT2Config(**GPT),
    "gpt_neox": GPTNeoXConfig(intermediate_size=64, **WIDE),
    "opt": OPTConfig(ffn_dim=64, word_embed_proj_dim=32, **WIDE),
}


def _model(config: PreTrainedConfig, attention: str, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)


def _example(length: int, seed: int = 0) -> SFTExample:
    tokens = np.random.default_rng([length, seed]).integers(0, VOCABULARY, length, dtype=np.int32)
    return SFTExample(tokens, np.arange(length) >= (length + 1) // 2)


GROUPS = [[_example(3), _example(7), _example(1)], [_example(5)], [_example(2), _example(9)]]


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 50), st.integers(1, 30))
def test_groups_hold_every_row_once_within_the_capacity(
    lengths: list[int], capacity: int, window: int
) -> None:
    groups = pack(lengths, capacity, window)

    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in group) <= capacity for group in groups)
    assert all(group == sorted(group) for group in groups)
    assert all(len({row // window for row in group}) == 1 for group in groups)
    firsts = [group[0] for group in groups]
    assert firsts == sorted(firsts)
    assert pack(lengths, capacity, window) == groups


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(20, 50))
def test_first_fit_decreasing_is_within_its_bound(lengths: list[int], capacity: int) -> None:
    least = -(-sum(lengths) // capacity)

    groups = pack(lengths, capacity, window=len(lengths))

    # Any two groups hold more than one capacity, or the second had gone into the first.
    assert len(groups) <= 2 * least
    fills = sorted(sum(lengths[row] for row in group) for group in groups)
    assert len(fills) < 2 or fills[0] + fills[1] > capacity


def test_groups_by_hand() -> None:
    assert pack([2, 5, 4, 3, 1, 6], 7) == [[0, 1], [2, 3], [4, 5]]
    assert pack([2, 5, 4, 3, 1, 6], 7, window=2) == [[0, 1], [2, 3], [4, 5]]
    assert pack([4, 4, 3, 3], 7, window=2) == [[0], [1], [2, 3]]
    assert pack([3, 3, 4, 4], 7) == [[0, 2], [1, 3]]
    assert pack([], 7) == []


@pytest.mark.parametrize("lengths", [[8], [0, 3]])
def test_a_row_that_fits_nowhere_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[1, 7\]"):
        pack(lengths, 7)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_a_sequence_is_wider_than_a_row_only_where_less_is_computed(lengths: list[int]) -> None:
    groups = groups_of(lengths, RowLayout.POSITIONS)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    longest = max(lengths)
    width = max(sum(lengths[row] for row in group) for group in groups)
    assert longest <= width <= 2 * longest
    narrow = pack(lengths, longest, window=len(lengths))
    assert len(groups) * width <= len(narrow) * longest
    assert width == longest or len(groups) * width < len(narrow) * longest


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        # Two of them fill what is little wider than one.
        ([5, 5, 3, 3], [[0, 2], [1, 3]]),
        # What would be saved is less than attention would cost.
        ([16, 14, 14, 14], [[0], [1], [2], [3]]),
        # The first case a thousand times as long, where attention costs more.
        ([5000, 5000, 3000, 3000], [[0], [1], [2, 3]]),
        ([6, 2, 4, 4, 6, 2], [[0], [1, 2], [3, 5], [4]]),
    ],
)
def test_widths_by_hand(lengths: list[int], groups: list[list[int]]) -> None:
    assert groups_of(lengths, RowLayout.POSITIONS) == groups


def test_a_packed_batch_by_hand() -> None:
    rows = [
        SFTExample(np.array([5, 6, 7], np.int32), np.array([False, True, True])),
        SFTExample(np.array([8, 9], np.int32), np.array([False, True])),
    ]

    batch = collate_packed([rows, rows[1:]], pad_id=9)

    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [8, 9, 9, 9, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 2, 2], [1, 1, 0, 0, 0]]
    assert batch.response_mask.int().tolist() == [[0, 1, 1, 0, 1], [0, 1, 0, 0, 0]]
    assert collate_packed([rows], 9, width=8).input_ids.shape == (1, 8)
    with pytest.raises(ValueError, match="5 tokens does not fit in width 4"):
        collate_packed([rows], 9, width=4)


def test_all_rows_in_one_sequence_by_hand() -> None:
    rows = [
        SFTExample(np.array([5, 6, 7], np.int32), np.array([False, True, True])),
        SFTExample(np.array([8, 9], np.int32), np.array([False, True])),
    ]

    batch = collate_packed([rows, rows[1:]], 0, RowLayout.ONE_SEQUENCE)

    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 2, 2, 3, 3]]
    assert batch.response_mask.int().tolist() == [[0, 1, 1, 0, 1, 0, 1]]


def test_each_layout_has_its_mask() -> None:
    rows = [SFTExample(np.array([5, 6, 7], np.int32), np.array([False, True, True]))]
    batch = collate_packed([rows, rows + rows], 0)

    padded = batch.attention_mask(RowLayout.PADDED, torch.float32)
    assert padded is not None
    assert padded.tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    block = batch.attention_mask(RowLayout.BLOCK_MASK, torch.bfloat16)
    assert block is not None
    assert torch.equal(block, block_causal_mask(batch.segment_ids, torch.bfloat16))
    for layout in (RowLayout.POSITIONS, RowLayout.ONE_SEQUENCE):
        assert batch.attention_mask(layout, torch.float32) is None


def test_the_mask_by_hand() -> None:
    mask = block_causal_mask(torch.tensor([[1, 1, 2, 0]]), torch.float32)

    assert mask.shape == (1, 1, 4, 4)
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
    ]
    assert set(mask.unique().tolist()) == {0.0, torch.finfo(torch.float32).min}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", list(PACKABLE))
def test_a_packed_row_has_the_logits_that_it_has_alone(name: str, attention: str) -> None:
    model = _model(PACKABLE[name], attention, torch.float32).eval()
    batch = collate_packed(GROUPS, pad_id=0)

    with torch.no_grad():
        packed = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=block_causal_mask(batch.segment_ids, torch.float32),
            use_cache=False,
        ).logits
        alone = [
            [model(input_ids=torch.tensor([row.tokens.tolist()])).logits[0] for row in group]
            for group in GROUPS
        ]

    assert torch.isfinite(packed).all()
    for index, rows in enumerate(alone):
        for number, logits in enumerate(rows, 1):
            segment = packed[index][batch.segment_ids[index] == number]
            torch.testing.assert_close(segment, logits, atol=1e-5, rtol=0)
    assert alone[0][1].std() > 0.05


@pytest.mark.parametrize("groups", [GROUPS, [[_example(1)]], [[_example(1)], [_example(4)]]])
def test_response_columns_are_those_whose_loss_counts(groups: list[list[SFTExample]]) -> None:
    batch = collate_packed(groups, 0, width=20)
    columns, real = batch.response_columns()
    counted = [torch.nonzero(mask).flatten().tolist() for mask in batch.response_mask]
    assert [row[kept].tolist() for row, kept in zip(columns, real, strict=True)] == counted
    assert columns.shape[1] == max([1, *map(len, counted)])
    assert int(columns.min()) >= 1
    assert int(columns.max()) < 20
