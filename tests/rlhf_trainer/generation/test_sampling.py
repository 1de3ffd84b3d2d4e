"""Which token is drawn: the distribution against softmax cut down by hand, and the draws."""

from typing import Any

import decoded
import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from rlhf_trainer.generation.counter import RowSeeds
from rlhf_trainer.generation.sampling import TokenSampler

CPU = torch.device("cpu")
LOGITS = torch.tensor([[2.0, -1.0, 0.5, 1.5, 0.0, -3.0, 1.0]])


def sampler(**changed: Any) -> TokenSampler:
    return TokenSampler(decoded.sampling(**changed), CPU)


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        pytest.param({}, range(7), id="all"),
        pytest.param({"top_k": 3}, (0, 3, 6), id="top_k"),
        pytest.param({"top_k": 7}, range(7), id="top_k of all"),
        # Probabilities 0.4185, 0.2538, 0.1539, 0.0934, ...: two reach 0.67, three 0.82.
        pytest.param({"top_p": 0.67}, (0, 3), id="top_p"),
        pytest.param({"top_p": 0.68}, (0, 3, 6), id="top_p a little more"),
        pytest.param({"top_p": 1e-9}, (0,), id="top_p of one"),
        pytest.param({"absent_ids": (0, 4)}, (1, 2, 3, 5, 6), id="absent rows"),
        pytest.param({"absent_ids": (0,), "top_k": 2}, (3, 6), id="absent rows and top_k"),
        # Of the three likeliest 0.5065, 0.3072, 0.1863.
        pytest.param({"top_k": 3, "top_p": 0.8}, (0, 3), id="top_p of what top_k leaves"),
    ],
)
def test_the_distribution_is_a_softmax_over_what_is_kept(changed: Any, kept: Any) -> None:
    found = sampler(**changed).distribution(LOGITS)[0].exp()
    expected = torch.zeros(7)
    expected[list(kept)] = torch.softmax(LOGITS[0, list(kept)], dim=0)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("top_k", [0, 2, 5])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_the_distribution_is_that_of_transformers(
    temperature: float, top_k: int, top_p: float
) -> None:
    torch.manual_seed(3)
    logits = 2 * torch.randn(50, 11)
    found = sampler(temperature=temperature, top_k=top_k, top_p=top_p).distribution(logits)
    scores: Any = logits / temperature
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    scores = TopPLogitsWarper(top_p)(None, scores)
    torch.testing.assert_close(found.exp(), torch.softmax(scores, dim=-1))


def test_of_equals_as_many_are_kept_as_are_asked_for() -> None:
    found = sampler(top_k=2).distribution(torch.zeros(1, 5)).exp()
    assert found.tolist() == [[0.5, 0.5, 0, 0, 0]]


@pytest.mark.parametrize(
    ("changed", "bound"),
    [
        # 99.9 % of chi-square distributions with 6, 6, 2 and 2 degrees of freedom.
        pytest.param({}, 22.5, id="softmax"),
        pytest.param({"temperature": 2.0}, 22.5, id="temperature"),
        pytest.param({"top_k": 3}, 13.9, id="top_k"),
        pytest.param({"top_p": 0.75}, 13.9, id="top_p"),
    ],
)
def test_tokens_are_drawn_from_the_distribution(changed: Any, bound: float) -> None:
    count = 20_000
    draw = sampler(**changed)
    uniforms = RowSeeds(11, range(count)).uniforms(1, CPU)[:, 0]
    tokens, logprobs = draw(LOGITS.expand(count, -1), uniforms)
    distribution = draw.distribution(LOGITS)[0]
    expected = distribution.exp() * count
    observed = torch.bincount(tokens, minlength=7).float()
    common = expected > 0
    assert (observed[~common] == 0).all()
    assert float(((observed - expected).square() / expected)[common].sum()) < bound
    assert torch.equal(logprobs, distribution[tokens])


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, -1)
    edges = torch.tensor([0.0, 0.5 - 2**-53, 0.5, 1 - 2**-53], dtype=torch.float64)
    tokens, _ = sampler()(logits, edges)
    assert tokens.tolist() == [1, 1, 3, 3]


def test_a_rare_token_of_a_large_vocabulary_is_drawn() -> None:
    """Summed up in fp32, probabilities of 2e-9 behind a likely token would be lost."""
    logits = torch.full((1, 150_000), -20.0)
    logits[0, 0] = 0.0
    tokens, _ = sampler()(logits, torch.tensor([1 - 1e-6], dtype=torch.float64))
    rest = torch.softmax(logits.double(), dim=-1)[0, 1]
    expected = 150_000 - round(1e-6 / float(rest))
    assert abs(int(tokens) - expected) <= 2


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_distribution_ends_the_row(value: float) -> None:
    logits = LOGITS.repeat(2, 1)
    logits[1, 3] = value
    tokens, logprobs = sampler(stop_ids=(5, 6))(logits, torch.tensor([0.0, 0.9]).double())
    assert tokens.tolist() == [0, 5]
    assert logprobs[0].isfinite()
    assert logprobs[1].isnan()
