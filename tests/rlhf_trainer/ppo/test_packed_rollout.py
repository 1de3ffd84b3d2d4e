"""A rollout's rows that share sequences: where each stands, and what models say of it."""

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rlhf_trainer.data.packing import RowLayout
from rlhf_trainer.models.heads import Actor, Critic, Logits, ScalarModel
from rlhf_trainer.ppo.experience import last_scores, response_statistics, response_values
from rlhf_trainer.ppo.rollout import PackedRollout, Rollout
from rlhf_trainer.rl import response_mask

LAYOUTS = (RowLayout.POSITIONS, RowLayout.ONE_SEQUENCE)
LENGTHS = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 9)), min_size=1, max_size=7)
TOKENS = 40
"""More than the longest row has."""
FIRST_ID = 3


def rollout_of(lengths: list[tuple[int, int]], words: int = 10**6) -> Rollout:
    """Rows of such prompts and responses, with two columns of padding more than they need."""
    prompt, response = (max(row[at] for row in lengths) + 2 for at in range(2))
    prompt_lengths, response_lengths = torch.tensor(lengths).unbind(dim=1)
    drawn = torch.arange(len(lengths) * (prompt + response)) % (words - FIRST_ID) + FIRST_ID
    prompts, responses = drawn.view(len(lengths), -1).split([prompt, response], dim=1)
    padding = torch.arange(prompt) < (prompt - prompt_lengths).unsqueeze(1)
    return Rollout(
        torch.where(padding, 0, prompts),
        prompt_lengths,
        torch.where(response_mask(response_lengths, response), responses, 0),
        response_lengths,
        response_lengths % 2 == 0,
        torch.zeros(len(lengths), response),
    )


def whole_row(rollout: Rollout, row: int) -> list[int]:
    prompt = rollout.prompts[row, rollout.prompts.shape[1] - rollout.prompt_lengths[row] :]
    return [*prompt.tolist(), *rollout.responses[row, : rollout.response_lengths[row]].tolist()]


# Where each row stands


@pytest.mark.parametrize("layout", LAYOUTS)
@given(lengths=LENGTHS)
def test_each_row_stands_whole_behind_another(
    layout: RowLayout, lengths: list[tuple[int, int]]
) -> None:
    rollout = rollout_of(lengths)
    for rows, part in rollout.within(TOKENS, layout):
        ids, mask, positions = part.inputs
        assert mask is None
        assert ids.shape == positions.shape
        assert ids.numel() <= TOKENS
        where = ids.flatten().tolist()
        for at, row in enumerate(rows.tolist()):
            tokens = whole_row(rollout, row)
            assert isinstance(part, PackedRollout)
            start = int(part.starts[at])
            there = slice(start, start + len(tokens))
            assert where[there] == tokens
            assert positions.flatten()[there].tolist() == list(range(len(tokens)))
            assert start // ids.shape[1] == (there.stop - 1) // ids.shape[1], "in one sequence"
        real = sum(len(whole_row(rollout, row)) for row in rows.tolist())
        assert int((ids > 0).sum()) == real
        assert int(positions[ids == 0].sum()) == 0
        assert layout is RowLayout.POSITIONS or ids.shape == (1, real)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(lengths=LENGTHS)
def test_numbers_come_back_to_their_rows(layout: RowLayout, lengths: list[tuple[int, int]]) -> None:
    """Numbers that are the ids of the tokens that they belong to."""
    rollout = rollout_of(lengths)
    seen: list[int] = []
    for rows, part in rollout.within(TOKENS, layout):
        ids, _, _ = part.inputs
        columns = part.action_columns
        assert isinstance(columns, Tensor)
        actions = part.of_actions(ids.gather(1, columns))
        before, ends = part.before_actions(ids), part.at_ends(ids)
        assert actions.shape == before.shape == part.responses.shape
        for at, row in enumerate(rows.tolist()):
            tokens, length = whole_row(rollout, row), lengths[row][1]
            assert actions[at, :length].tolist() == tokens[-length:]
            assert before[at, :length].tolist() == tokens[-length - 1 : -1]
            assert int(ends[at]) == tokens[-1]
        seen += rows.tolist()
    assert sorted(seen) == list(range(len(lengths)))


@given(lengths=LENGTHS)
def test_a_pass_takes_as_many_rows_as_it_holds(lengths: list[tuple[int, int]]) -> None:
    """In one sequence there is no padding, so that numbers of tokens alone decide."""
    parts = rollout_of(lengths).within(TOKENS, RowLayout.ONE_SEQUENCE)
    totals = sorted(map(sum, lengths), reverse=True)
    expected = []
    while totals:
        count = sum(total <= TOKENS for total in accumulate(totals))
        expected.append(totals[:count])
        totals = totals[count:]
    found = [(part.prompt_lengths + part.response_lengths).tolist() for _, part in parts]
    assert [rows[::-1] for rows in reversed(found)] == expected


def test_short_rows_share_a_sequence_by_hand() -> None:
    (found,) = rollout_of([(1, 2), (4, 2), (2, 1)]).within(TOKENS, RowLayout.POSITIONS)
    rows, part = found
    assert rows.tolist() == [0, 2, 1]
    assert part.inputs[2].tolist() == [[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5]]
    columns = part.action_columns
    assert isinstance(columns, Tensor)
    assert columns.tolist() == [[1, 2, 5], [4, 5, 1]]


def test_a_row_of_it_alone_is_padded_again() -> None:
    ((_, part),) = rollout_of([(1, 2), (4, 2)]).within(TOKENS, RowLayout.POSITIONS)
    one = part[:1]
    assert not isinstance(one, PackedRollout)
    assert one.inputs[1] is not None


def test_the_end_that_a_reward_model_knows_stands_where_the_answer_ended() -> None:
    ((_, part),) = rollout_of([(1, 2), (4, 3)]).within(TOKENS, RowLayout.POSITIONS)
    ends = part.ended_by(2).at_ends(part.ended_by(2).inputs[0])
    # The second was cut off.
    assert ends.tolist() == [2, int(part.at_ends(part.inputs[0])[1])]


# What models say of it


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("packed")
    return tiny.tokenizer_folder(found / "tokenizer")


def answers(model: nn.Module, rollout: Rollout) -> list[tuple[Tensor, Tensor]]:
    """What is asked of a model, and which of its numbers count."""
    mask = rollout.response_mask
    if isinstance(model, Actor):
        statistics = response_statistics(model, rollout, 0.7, entropy=True, entropy_gradient=True)
        assert statistics.entropy is not None
        return [(statistics.logprobs, mask), (statistics.entropy, mask)]
    scores = last_scores(model, rollout, 2)
    return [(response_values(model, rollout), mask), (scores, torch.ones_like(scores).bool())]


MODELS: dict[str, Callable[[Path], nn.Module]] = {
    "actor, by its head": lambda at: Actor(tiny.causal_model(at), logits=Logits.HEAD),
    "actor, by its head in chunks": lambda at: tiny.in_chunks(
        Actor(tiny.causal_model(at), logits=Logits.HEAD)
    ),
    "actor, by columns": lambda at: Actor(tiny.causal_model(at), logits=Logits.COLUMNS),
    "critic": lambda at: Critic(tiny.scalar_model(at)),
    "reward model": lambda at: ScalarModel(tiny.scalar_model(at)),
}


@pytest.mark.parametrize("layout", [RowLayout.PADDED, *LAYOUTS])
@pytest.mark.parametrize("name", MODELS)
def test_packed_rows_have_the_numbers_and_the_gradient_of_padded_ones(
    words: Path, name: str, layout: RowLayout
) -> None:
    model = MODELS[name](words).eval()
    size: Any = model.get_submodule("model")
    rollout = rollout_of([(5, 3), (1, 9), (4, 4), (2, 1), (7, 9), (3, 2)], size.config.vocab_size)
    weights = torch.randn(rollout.responses.shape, generator=torch.Generator().manual_seed(3))

    def learned(parts: list[tuple[Tensor, Rollout]]) -> tuple[Tensor, list[Tensor]]:
        """All numbers in the order of the rows, and the gradient of a sum of them."""
        model.zero_grad()
        numbers = torch.zeros(4, *rollout.responses.shape)
        for rows, part in parts:
            total = torch.zeros(())
            for at, (found, mask) in enumerate(answers(model, part)):
                width = found.shape[1] if found.dim() > 1 else 1
                kept = torch.where(mask, found, 0.0).view(len(rows), width)
                total = total + (kept * weights[rows, :width]).sum()
                numbers[at, rows, :width] = kept.detach()
            total.backward()
        return numbers, [
            parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
        ]

    expected, gradient = learned([(torch.arange(6), rollout)])
    found, packed_gradient = learned(rollout.within(TOKENS, layout))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert len(gradient) == len(packed_gradient) > 5
    for one, other in zip(packed_gradient, gradient, strict=True):
        assert float((one - other).norm()) <= 1e-5 * float(other.norm())
