"""Log-probabilities and entropies: their numbers, their gradients and their memory."""

import math
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from tensor_sizes import Largest
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_trainer.rl.logprobs import policy_logits, token_statistics

assert_close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


class Both(NamedTuple):
    logprobs: Tensor
    entropy: Tensor


def with_entropy(*args: Any, **settings: Any) -> Both:
    logprobs, entropy = token_statistics(*args, entropy=True, **settings)
    assert entropy is not None
    return Both(logprobs, entropy)


def batch(seed: int = 0, rows: int = 2, time: int = 7, vocab: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, time, vocab, dtype=torch.float64, generator=generator)
    return logits, torch.randint(vocab, (rows, time), generator=generator)


def loop(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The definitions, one number at a time."""
    logprobs, entropy = torch.zeros(2, *tokens.shape, dtype=torch.float64)
    for b in range(tokens.shape[0]):
        for t in range(tokens.shape[1]):
            weights = [math.exp(z / temperature) for z in logits[b, t].tolist()]
            p = [weight / sum(weights) for weight in weights]
            logprobs[b, t] = math.log(p[int(tokens[b, t])])
            entropy[b, t] = -sum(each * math.log(each) for each in p)
    return logprobs, entropy


def test_by_hand() -> None:
    # Logits ln 1, ln 2, ln 5 are the probabilities 1/8, 2/8, 5/8; tokens 2 and 0.
    # H = 1/8 ln 8 + 1/4 ln 4 + 5/8 ln(8/5) = 11/4 ln 2 − 5/8 ln 5
    # = 1.906154747 − 1.005898695 = 0.900256051.
    logits = torch.tensor([[[1.0, 2.0, 5.0]] * 2], dtype=torch.float64).log()
    tokens = torch.tensor([[2, 0]])
    logprobs, entropy = with_entropy(logits, tokens)
    expected = torch.tensor([[-0.4700036292457356, -2.0794415416798357]], dtype=torch.float64)
    assert_close(logprobs, expected)
    assert entropy[0, 0].item() == pytest.approx(0.900256051, abs=1e-9)


def test_temperature_by_hand() -> None:
    # At temperature 1/2 the weights 1, 2, 5 are squared: 25/30 for the last.
    logits = torch.tensor([[[1.0, 2.0, 5.0]]], dtype=torch.float64).log()
    logprobs, _ = with_entropy(logits, torch.tensor([[2]]), 0.5)
    assert logprobs.item() == pytest.approx(math.log(25 / 30), rel=1e-12)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
def test_both_equal_the_loop(chunk: int, temperature: float) -> None:
    logits, tokens = batch()
    logprobs, entropy = loop(logits, tokens, temperature)
    both = with_entropy(logits, tokens, temperature, chunk=chunk)
    assert_close(both.logprobs, logprobs)
    assert_close(both.entropy, entropy)


def test_probabilities_sum_to_one_and_a_shift_of_logits_changes_nothing() -> None:
    logits, _ = batch()
    every = [with_entropy(logits, torch.full((2, 7), token), 0.7) for token in range(5)]
    total = sum((each.logprobs.exp() for each in every), torch.zeros(2, 7))
    assert_close(total, torch.ones(2, 7, dtype=torch.float64))
    shifted = with_entropy(logits + 50, torch.zeros(2, 7, dtype=torch.long), 0.7)
    assert_close(shifted.logprobs, every[0].logprobs)
    assert_close(shifted.entropy, every[0].entropy)


def test_entropy_lies_between_a_certain_and_a_uniform_choice() -> None:
    uniform = torch.zeros(1, 1, 8, dtype=torch.float64)
    certain = torch.tensor([[[500.0, 0.0, 0.0]]], dtype=torch.float64)
    first = torch.tensor([[0]])
    assert with_entropy(uniform, first).entropy.item() == pytest.approx(math.log(8), rel=1e-12)
    assert with_entropy(certain, first).entropy.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("absent", [None, torch.tensor([3])])
def test_gradients_equal_finite_differences(entropy: bool, absent: Tensor | None) -> None:
    logits, tokens = batch(rows=1, time=4, vocab=4)
    logits.requires_grad_()

    def numbers(z: Tensor) -> tuple[Tensor, ...]:
        found = token_statistics(z, tokens % 3, 0.7, absent, entropy=entropy, chunk=3)
        return tuple(each for each in found if each is not None)

    assert torch.autograd.gradcheck(numbers, (logits,))


def test_entropy_is_computed_where_it_is_asked_for_alone() -> None:
    logits, tokens = batch()
    logits.requires_grad_()
    with Counting() as asked:
        both = with_entropy(logits, tokens, 0.7)
    with Counting() as unasked:
        one = token_statistics(logits, tokens, 0.7)
    assert one.entropy is None
    assert torch.equal(one.logprobs, both.logprobs)
    assert (asked.exponentials, unasked.exponentials) == (1, 0)


@pytest.mark.parametrize("which", [0, 1])
def test_a_loss_of_one_number_learns_from_that_one(which: int) -> None:
    logits, tokens = batch()
    logits.requires_grad_()
    other = 1 - which
    (alone,) = torch.autograd.grad(with_entropy(logits, tokens, 0.7)[which].sum(), logits)
    both = with_entropy(logits, tokens, 0.7)
    (weighted,) = torch.autograd.grad(both[which].sum() + 0 * both[other].sum(), logits)
    assert_close(alone, weighted)
    assert alone.abs().max() > 0.01


@pytest.mark.parametrize("gap", [200.0, float("inf")])
def test_impossible_words_leave_numbers_and_gradients_finite(gap: float) -> None:
    # In fp32 a word 200 nats below the best has probability 0 to the last bit.
    logits = torch.tensor([[[0.0, 0.0, -gap]]], requires_grad=True)
    logprobs, entropy = with_entropy(logits, torch.tensor([[0]]))
    assert logprobs.item() == pytest.approx(-math.log(2), rel=1e-6)
    assert entropy.item() == pytest.approx(math.log(2), rel=1e-6)
    (logprobs + entropy).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(
        logits.grad, torch.tensor([[[0.5, -0.5, 0.0]]]), rtol=1e-6, atol=1e-7
    )


def test_bf16_logits_are_lifted_before_the_softmax() -> None:
    logits, tokens = batch()
    half = logits.bfloat16()
    logprobs, entropy = with_entropy(half, tokens, 0.7)
    assert logprobs.dtype == entropy.dtype == torch.float32
    exact, _ = loop(half.double(), tokens, 0.7)
    torch.testing.assert_close(logprobs, exact.float(), rtol=1e-6, atol=1e-6)


class Counting(TorchDispatchMode):
    """Counts exponentials over the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.exponentials = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.exponentials += func is torch.ops.aten.exp.default
        return func(*args, **(kwargs or {}))


def test_no_fp32_copy_of_all_logits_exists_forward_or_backward() -> None:
    rows, time, vocab, chunk = 2, 32, 64, 4
    logits, tokens = batch(0, rows, time, vocab)
    logits = logits.bfloat16().requires_grad_()
    kept: list[int] = []

    def note(x: Tensor) -> Tensor:
        kept.append(x.numel() if x.dtype == torch.float32 else 0)
        return x

    with Largest() as largest, saved_tensors_hooks(note, lambda x: x):
        statistics = with_entropy(logits, tokens, 0.7, chunk=chunk)
        loss = statistics.logprobs.sum() + statistics.entropy.sum()
        loss.backward()
    assert largest.numel <= rows * chunk * vocab
    # What autograd keeps between the passes, all chunks together.
    assert sum(kept) < rows * chunk * vocab


@torch.inference_mode()
def test_works_in_inference_mode() -> None:
    logits, tokens = batch()
    assert not with_entropy(logits, tokens, chunk=2).logprobs.requires_grad


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_above_zero(temperature: float) -> None:
    logits, tokens = batch()
    with pytest.raises(ValueError, match="temperature is"):
        with_entropy(logits, tokens, temperature)


def test_shapes_that_disagree_are_refused() -> None:
    logits, tokens = batch()
    with pytest.raises(ValueError, match=r"tokens \[2, 6\]"):
        with_entropy(logits, tokens[:, 1:])


def test_absent_rows_have_no_probability_and_change_nothing_else() -> None:
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 5, 7, generator=draw, dtype=torch.float64).requires_grad_()
    absent = torch.tensor([2, 6])
    tokens = torch.randint(0, 2, (2, 5), generator=draw)
    kept = [0, 1, 3, 4, 5]

    logprobs, entropy = with_entropy(logits, tokens, 0.7, absent, chunk=2)

    smaller = with_entropy(logits[..., kept], tokens, 0.7)
    assert_close(logprobs, smaller.logprobs)
    assert_close(entropy, smaller.entropy)
    (logprobs + entropy).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[..., absent] == 0).all()
    assert (logits.grad[..., kept] != 0).all()


def test_the_policy_s_logits_are_drawn_from_without_absent_rows() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0]], dtype=torch.bfloat16)

    found = policy_logits(logits, 0.5, torch.tensor([0]))

    assert found.dtype == torch.float32
    assert found.tolist() == [[-math.inf, 2.0, 4.0]]
    assert policy_logits(logits, 0.5).tolist() == [[6.0, 2.0, 4.0]]
    assert policy_logits(logits, 0.5, torch.tensor([], dtype=torch.long)).tolist() == [[6, 2, 4]]
