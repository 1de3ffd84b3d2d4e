"""Log-probabilities and entropies: their numbers, their gradients and their memory."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_trainer.rl.logprobs import (
    logprobs_from_hidden,
    token_entropy,
    token_logprobs,
    token_statistics,
)

assert_close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


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
    logprobs, entropy = token_statistics(logits, tokens)
    expected = torch.tensor([[-0.4700036292457356, -2.0794415416798357]], dtype=torch.float64)
    assert_close(logprobs, expected)
    assert entropy[0, 0].item() == pytest.approx(0.900256051, abs=1e-9)


def test_temperature_by_hand() -> None:
    # At temperature 1/2 the weights 1, 2, 5 are squared: 25/30 for the last.
    logits = torch.tensor([[[1.0, 2.0, 5.0]]], dtype=torch.float64).log()
    logprobs = token_logprobs(logits, torch.tensor([[2]]), 0.5)
    assert logprobs.item() == pytest.approx(math.log(25 / 30), rel=1e-12)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
def test_every_form_equals_the_loop(chunk: int, temperature: float) -> None:
    logits, tokens = batch()
    logprobs, entropy = loop(logits, tokens, temperature)
    assert_close(token_logprobs(logits, tokens, temperature, chunk=chunk), logprobs)
    assert_close(token_entropy(logits, temperature, chunk=chunk), entropy)
    both = token_statistics(logits, tokens, temperature, chunk=chunk)
    assert_close(both.logprobs, logprobs)
    assert_close(both.entropy, entropy)
    flat = logprobs_from_hidden(
        logits.flatten(0, 1), lambda hidden: hidden, tokens.flatten(), temperature, chunk=chunk
    )
    assert_close(flat.logprobs, logprobs.flatten())
    assert_close(flat.entropy, entropy.flatten())


def test_probabilities_sum_to_one_and_a_shift_of_logits_changes_nothing() -> None:
    logits, _ = batch()
    every = [token_logprobs(logits, torch.full((2, 7), token), 0.7).exp() for token in range(5)]
    assert_close(torch.stack(every).sum(0), torch.ones(2, 7, dtype=torch.float64))
    assert_close(token_entropy(logits + 50), token_entropy(logits))


def test_entropy_lies_between_a_certain_and_a_uniform_choice() -> None:
    uniform = torch.zeros(1, 1, 8, dtype=torch.float64)
    certain = torch.tensor([[[500.0, 0.0, 0.0]]], dtype=torch.float64)
    assert token_entropy(uniform).item() == pytest.approx(math.log(8), rel=1e-12)
    assert token_entropy(certain).item() == pytest.approx(0.0, abs=1e-12)


def test_gradients_equal_finite_differences() -> None:
    logits, tokens = batch(rows=1, time=4, vocab=3)
    logits.requires_grad_()
    for function in (
        lambda z: token_logprobs(z, tokens, 0.7, chunk=3),
        lambda z: token_entropy(z, 0.7, chunk=3),
        lambda z: token_statistics(z, tokens, 0.7, chunk=3),
    ):
        assert torch.autograd.gradcheck(function, (logits,))


def test_gradients_through_the_head_equal_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    tokens = torch.tensor([0, 3, 1, 1, 2])

    def function(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return logprobs_from_hidden(hidden, lambda x: x @ weight.T, tokens, 0.7, chunk=2)

    assert torch.autograd.gradcheck(function, (hidden, weight))


def test_hidden_form_gives_the_gradients_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(9, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    head = torch.nn.Linear(3, 6, dtype=torch.float64)
    tokens = torch.randint(6, (9,), generator=generator)
    inputs = (hidden, head.weight, head.bias)
    logprobs, entropy = logprobs_from_hidden(hidden, head, tokens, 0.9, chunk=4)
    chunked = torch.autograd.grad(logprobs.sum() + 0.3 * entropy.sum(), inputs)
    whole = torch.log_softmax(head(hidden) / 0.9, dim=-1)
    loss = whole.gather(1, tokens[:, None]).sum() - 0.3 * (whole.exp() * whole).sum()
    for actual, expected in zip(chunked, torch.autograd.grad(loss, inputs), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("gap", [200.0, float("inf")])
def test_impossible_words_leave_numbers_and_gradients_finite(gap: float) -> None:
    # In fp32 a word 200 nats below the best has probability 0 to the last bit.
    logits = torch.tensor([[[0.0, 0.0, -gap]]], requires_grad=True)
    logprobs, entropy = token_statistics(logits, torch.tensor([[0]]))
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
    logprobs = token_logprobs(half, tokens, 0.7)
    assert logprobs.dtype == torch.float32
    exact, _ = loop(half.double(), tokens, 0.7)
    torch.testing.assert_close(logprobs, exact.float(), rtol=1e-6, atol=1e-6)


class Largest(TorchDispatchMode):
    """Remembers the largest fp32 tensor that an operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, Tensor) and each.dtype == torch.float32:
                self.numel = max(self.numel, each.numel())
        return result


def test_no_fp32_copy_of_all_logits_exists_forward_or_backward() -> None:
    rows, time, vocab, chunk = 2, 32, 64, 4
    logits, tokens = batch(0, rows, time, vocab)
    logits = logits.bfloat16().requires_grad_()
    kept: list[int] = []

    def note(x: Tensor) -> Tensor:
        kept.append(x.numel() if x.dtype == torch.float32 else 0)
        return x

    with Largest() as largest, saved_tensors_hooks(note, lambda x: x):
        statistics = token_statistics(logits, tokens, 0.7, chunk=chunk)
        loss = statistics.logprobs.sum() + statistics.entropy.sum()
        loss.backward()
    assert largest.numel <= rows * chunk * vocab
    # What autograd keeps between the passes, all chunks together.
    assert sum(kept) < rows * chunk * vocab


def test_head_sees_no_more_than_a_chunk_at_once() -> None:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(10, 3, generator=generator, requires_grad=True)
    head, seen = torch.nn.Linear(3, 50), []

    def watched(x: Tensor) -> Tensor:
        seen.append(x.shape[0])
        return head(x)

    with Largest() as largest:
        logprobs, _ = logprobs_from_hidden(
            hidden, watched, torch.zeros(10, dtype=torch.long), chunk=4
        )
        logprobs.sum().backward()
    assert seen[:3] == [4, 4, 2]
    assert len(seen) == 6  # three forward, and the same three again backward
    # The weight and its gradient are 150 numbers, the logits of a chunk 200, of all 500.
    assert largest.numel == 200


def test_no_positions_give_no_numbers_and_a_gradient_of_zero() -> None:
    head = torch.nn.Linear(3, 4)
    logprobs, entropy = logprobs_from_hidden(
        torch.zeros(0, 3), head, torch.zeros(0, dtype=torch.long)
    )
    assert logprobs.shape == entropy.shape == (0,)
    (logprobs.sum() + entropy.sum()).backward()
    assert head.weight.grad is not None
    assert head.weight.grad.count_nonzero().item() == 0


@torch.inference_mode()
def test_works_in_inference_mode() -> None:
    logits, tokens = batch()
    assert not token_logprobs(logits, tokens, chunk=2).requires_grad


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_above_zero(temperature: float) -> None:
    logits, tokens = batch()
    with pytest.raises(ValueError, match="temperature is"):
        token_logprobs(logits, tokens, temperature)
    with pytest.raises(ValueError, match="temperature is"):
        token_entropy(logits, temperature)
    with pytest.raises(ValueError, match="temperature is"):
        logprobs_from_hidden(logits[0], lambda x: x, tokens[0], temperature)


def test_shapes_that_disagree_are_refused() -> None:
    logits, tokens = batch()
    with pytest.raises(ValueError, match=r"tokens \[2, 6\]"):
        token_logprobs(logits, tokens[:, 1:])
    with pytest.raises(ValueError, match=r"want \[n, d\], \[n\]"):
        logprobs_from_hidden(logits, lambda x: x, tokens)
