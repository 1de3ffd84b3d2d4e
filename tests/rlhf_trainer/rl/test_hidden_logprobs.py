"""Log-probabilities and entropies from hidden states: as from all logits at once, but without them.

The measure is plain PyTorch: a linear layer, `log_softmax`, and autograd through both.
"""

from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from tensor_sizes import Largest
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from rlhf_trainer.rl.hidden_logprobs import hidden_statistics

WIDTH, VOCAB = 6, 11
assert_close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


class Case(NamedTuple):
    """Hidden states, a head and tokens."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    tokens: Tensor

    @classmethod
    def drawn(cls, rows: int = 2, time: int = 5, vocab: int = VOCAB, dtype: Any = None) -> "Case":
        draw = torch.Generator().manual_seed(3)

        def numbers(*shape: int) -> Tensor:
            exact = torch.randn(*shape, generator=draw, dtype=torch.float64)
            return exact.to(dtype or torch.float64).requires_grad_()

        tokens = torch.randint(vocab, (rows, time), generator=draw)
        return cls(numbers(rows, time, WIDTH), numbers(vocab, WIDTH), numbers(vocab), tokens)

    @property
    def learned(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.hidden, self.weight, self.bias


def plain(case: Case, temperature: float, absent: list[int]) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of each token, with all logits at once."""
    logits = torch.nn.functional.linear(case.hidden, case.weight, case.bias) / temperature
    present = [word for word in range(len(case.weight)) if word not in absent]
    log_softmax = torch.log_softmax(logits[..., present], dim=-1)
    places = torch.tensor([present.index(int(i)) for i in case.tokens.flatten()])
    logprobs = log_softmax.gather(-1, places.view_as(case.tokens).unsqueeze(-1)).squeeze(-1)
    return logprobs, -(log_softmax.exp() * log_softmax).sum(dim=-1)


def in_chunks(case: Case, *given: Any, **asked: Any) -> tuple[Tensor, Tensor]:
    logprobs, entropy = hidden_statistics(
        case.hidden, case.weight, case.bias, case.tokens, *given, entropy=True, **asked
    )
    assert entropy is not None
    return logprobs, entropy


@pytest.mark.parametrize("chunk", [1, VOCAB, 35, 109, 110])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("absent", [[], [2, 10]])
def test_numbers_and_gradients_are_those_of_all_logits_at_once(
    chunk: int, temperature: float, absent: list[int]
) -> None:
    """A token or a word at a time, parts that do not divide either, all but one logit, and all."""
    case = Case.drawn()
    for word in absent:
        case.tokens[case.tokens == word] = 0
    expected = plain(case, temperature, absent)
    found = in_chunks(case, temperature, torch.tensor(absent, dtype=torch.long), chunk=chunk)
    draw = torch.Generator().manual_seed(4)
    weights = torch.randn(2, *case.tokens.shape, generator=draw, dtype=torch.float64)
    for which in ((0,), (1,), (0, 1)):
        losses = [sum((weights[at] * each[at]).sum() for at in which) for each in (found, expected)]
        gradients, by_hand = (
            torch.autograd.grad(loss, case.learned, retain_graph=True) for loss in losses
        )
        assert_close(losses[0], losses[1])
        for gradient, other in zip(gradients, by_hand, strict=True):
            assert_close(gradient, other)
        assert all(not gradient[absent].any() for gradient in gradients[1:])
    for number, other in zip(found, expected, strict=True):
        assert_close(number, other)


@pytest.mark.parametrize("entropy", [True, False])
def test_gradients_equal_finite_differences(entropy: bool) -> None:
    case = Case.drawn(rows=1, time=3)

    def numbers(*learned: Tensor) -> tuple[Tensor, ...]:
        found = hidden_statistics(
            *learned, case.tokens % 3, 0.7, torch.tensor([3]), entropy=entropy, chunk=VOCAB + 1
        )
        return tuple(each for each in found if each is not None)

    assert torch.autograd.gradcheck(numbers, case.learned)


def test_a_token_without_a_row_learns_nothing_where_its_loss_is_masked() -> None:
    """What fills a row behind its end may be any id."""
    case = Case.drawn()
    case.tokens[0, -1] = 2
    found = in_chunks(case, 0.7, torch.tensor([2]), chunk=3)
    assert found[0][0, -1] == -torch.inf
    mask = torch.ones_like(case.tokens, dtype=torch.bool)
    mask[0, -1] = False
    masked = torch.where(mask, found[0] + found[1], 0.0).sum()
    for gradient in torch.autograd.grad(masked, case.learned):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("chunk", [4, 1000])
def test_a_head_may_have_no_bias_or_stay_as_it_is(chunk: int) -> None:
    case = Case.drawn()
    zero = case._replace(bias=torch.zeros(VOCAB, dtype=torch.float64))
    expected = torch.autograd.grad(plain(zero, 1.0, [])[0].sum(), case.hidden)
    frozen = case.weight.detach()
    found = hidden_statistics(case.hidden, frozen, None, case.tokens, chunk=chunk)
    assert found.entropy is None
    assert_close(torch.autograd.grad(found.logprobs.sum(), case.hidden), expected)
    # Adapters in lower layers may all be off.
    still = hidden_statistics(case.hidden.detach(), case.weight, None, case.tokens, chunk=chunk)
    expected = torch.autograd.grad(plain(zero, 1.0, [])[0].sum(), case.weight)
    assert_close(torch.autograd.grad(still.logprobs.sum(), case.weight), expected)


def test_a_bf16_weight_has_its_gradient_rounded_once() -> None:
    """A sum of parts in bf16 would lose some of each."""
    case = Case.drawn(rows=16, time=32, dtype=torch.bfloat16)
    exact = Case(*(each.detach().double().requires_grad_() for each in case.learned), case.tokens)
    (expected,) = torch.autograd.grad(plain(exact, 1.0, [])[0].sum(), exact.weight)

    def error(chunk: int) -> float:
        found = hidden_statistics(case.hidden, case.weight, case.bias, case.tokens, chunk=chunk)
        assert found.logprobs.dtype == torch.float32
        (gradient,) = torch.autograd.grad(found.logprobs.sum(), case.weight)
        return float((gradient.double() - expected).norm() / expected.norm())

    assert error(VOCAB) < 1.2 * error(10**6) < 0.02


@pytest.mark.parametrize("entropy", [True, False])
def test_no_more_logits_than_a_chunk_exist_forward_or_backward(entropy: bool) -> None:
    case = Case.drawn(rows=4, time=16, vocab=640, dtype=torch.float32)
    chunk = 64 * 640 // 8
    kept: list[int] = []

    def note(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    with Largest() as largest, saved_tensors_hooks(note, lambda x: x):
        found = hidden_statistics(*case, 0.7, entropy=entropy, chunk=chunk)
        loss = found.logprobs.sum()
        if found.entropy is not None:
            loss = loss + found.entropy.sum()
        loss.backward()
    assert largest.numel == chunk
    # The head's own weight and bias, hidden states, and some numbers a token.
    assert sum(kept) <= 640 * (WIDTH + 1) + 64 * (WIDTH + 8)


@torch.no_grad()
def test_hidden_states_of_another_precision_are_the_head_s() -> None:
    case = Case.drawn()
    half = case.hidden.bfloat16()
    expected = hidden_statistics(half.double(), *case[1:], chunk=4)
    found = hidden_statistics(half, *case[1:], chunk=4)
    assert_close(found.logprobs, expected.logprobs)


@torch.inference_mode()
def test_works_in_inference_mode() -> None:
    assert not in_chunks(Case.drawn(), chunk=4)[0].requires_grad


@pytest.mark.parametrize("asked", [{"chunk": 0}, {"temperature": 0.0}])
def test_what_must_be_above_zero(asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(asked))} is 0"):
        hidden_statistics(*Case.drawn(), **asked)


def test_shapes_that_disagree_are_refused() -> None:
    case = Case.drawn()
    with pytest.raises(ValueError, match=r"tokens \[2, 4\]"):
        hidden_statistics(*case.learned, case.tokens[:, 1:])
