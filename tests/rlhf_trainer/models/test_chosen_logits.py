"""Which logits a model is asked for, by a shrunken copy; and that those make the same numbers."""

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import zoo
from right_padding import pad_right
from tensor_sizes import Largest
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPTJConfig,
    GraniteConfig,
    MiniCPM3Config,
    PhiConfig,
    PreTrainedConfig,
)

from rlhf_trainer.data.collate import pad_left
from rlhf_trainer.models import chosen_logits
from rlhf_trainer.models.chosen_logits import fewest_logits, head_makes_logits, keeps_columns
from rlhf_trainer.models.heads import Actor, Float32Linear, Logits, VocabularyHead
from rlhf_trainer.models.layouts import Probe
from rlhf_trainer.models.load import ModelSettings

CPU = torch.device("cpu")


def settings() -> ModelSettings:
    return ModelSettings(torch.float32, "eager", seed=1)


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_every_architecture_computes_logits_of_chosen_columns(name: str) -> None:
    probe = Probe.of(zoo.base(name), settings(), CPU)
    assert keeps_columns(probe)
    # Its logits have a cap.
    capped = name == "Gemma 2"
    assert head_makes_logits(probe) == (not capped)
    assert fewest_logits(zoo.base(name), settings()) is (Logits.COLUMNS if capped else Logits.HEAD)


# As configurations are published, each with a scale or a cap of its logits.
SCALED: dict[str, PreTrainedConfig] = {
    "Granite": GraniteConfig(logits_scaling=8.0),
    "Cohere": CohereConfig(),
    "Gemma 2": Gemma2Config(),
    "MiniCPM3": MiniCPM3Config(),
}
UNSCALED: dict[str, PreTrainedConfig] = {
    "Granite": GraniteConfig(logits_scaling=1.0),
    "Cohere": CohereConfig(logit_scale=1.0),
    "Gemma 2": Gemma2Config(final_logit_softcapping=None),
    "GPT-J, with a bias": GPTJConfig(),
    "Phi, with a bias": PhiConfig(),
}


@pytest.mark.parametrize("name", SCALED)
def test_scaled_or_capped_logits_are_left_to_the_model(name: str) -> None:
    assert fewest_logits(zoo.base(SCALED[name]), settings()) is Logits.COLUMNS


@pytest.mark.parametrize("name", UNSCALED)
def test_where_logits_are_the_head_s_alone_it_makes_them(name: str) -> None:
    assert fewest_logits(zoo.base(UNSCALED[name]), settings()) is Logits.HEAD


def test_a_head_of_another_class_is_left_to_its_model() -> None:
    probe = Probe.of(zoo.base("Llama"), settings(), CPU)
    model: Any = probe.model
    assert head_makes_logits(probe)
    model.lm_head = Float32Linear.of(model.lm_head)
    assert not head_makes_logits(probe)


def test_a_model_that_keeps_no_columns_is_asked_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen_logits, "keeps_columns", lambda _: False)
    assert fewest_logits(zoo.base("Gemma 2"), settings()) is Logits.ALL
    assert fewest_logits(zoo.base("Llama"), settings()) is Logits.HEAD


@pytest.mark.parametrize("kept", ["all", "others", "those of the first row", "none"])
def test_a_model_that_keeps_other_columns_is_found_out(
    monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    probe = Probe.of(zoo.base("Llama"), settings(), CPU)
    forward = probe.model.forward

    def otherwise(logits_to_keep: torch.Tensor | None = None, **inputs: Any) -> Any:
        if logits_to_keep is None:
            return forward(**inputs)
        if kept == "none":
            raise IndexError("no tensors")
        columns = {
            "all": 0,
            "others": logits_to_keep - 1,
            "those of the first row": logits_to_keep[0],
        }[kept]
        return forward(**inputs, logits_to_keep=columns)

    assert keeps_columns(probe)
    monkeypatch.setattr(probe.model, "forward", otherwise)
    assert not keeps_columns(probe)


# What an actor makes of them

LENGTHS = (9, 4, 6)
RESPONSE = 3
"""Tokens at each row's end that are looked at."""


def rows() -> list[list[int]]:
    draw = torch.Generator().manual_seed(2)
    return [torch.randint(3, zoo.VOCABULARY, (n,), generator=draw).tolist() for n in LENGTHS]


def untrained(name: str, *, tied: bool) -> Any:
    """A model whose logits differ by whole nats, the same at each call."""
    config = copy.deepcopy(zoo.ARCHITECTURES[name])
    config.tie_word_embeddings = tied
    torch.manual_seed(1)
    return tiny.shake(AutoModelForCausalLM.from_config(config)).eval()


def plainly(model: Any, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of the last tokens of each row, from all its logits."""
    numbers = []
    for row in rows():
        ids = torch.tensor([row])
        logits = model(input_ids=ids, use_cache=False).logits[0, -RESPONSE - 1 : -1] / temperature
        drawn = torch.distributions.Categorical(logits=logits)
        numbers.append((drawn.log_prob(ids[0, -RESPONSE:]), drawn.entropy()))
    logprobs, entropies = zip(*numbers, strict=True)
    return torch.stack(logprobs), torch.stack(entropies)


def by_actor(actor: Actor, padding: str, temperature: float) -> tuple[Tensor, Tensor]:
    """The same in one batch, of the last columns or of columns that are chosen for each row."""
    if padding == "left":
        batch = pad_left(rows(), 0, max(LENGTHS) + 2)
        columns: Any = RESPONSE
    else:
        batch = pad_right(rows(), 0)
        columns = torch.tensor([list(range(n - RESPONSE, n)) for n in LENGTHS])
    found = actor(*batch[:3], columns, temperature, entropy=True, entropy_gradient=True)
    return found.logprobs, found.entropy


def gradients(model: Any, numbers: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    loss = sum((torch.randn(each.shape, generator=draw) * each).mean() for each in numbers)
    learned = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(learned.values()))
    return dict(zip(learned, found, strict=True))


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["Llama", "GPT-2", "Qwen2", "Gemma 2", "GPT-J"])
def test_numbers_and_gradients_are_those_of_the_plain_model(
    name: str, tied: bool, padding: str
) -> None:
    model = untrained(name, tied=tied)
    plain = plainly(model, 0.7)
    expected = gradients(model, plain)
    ours = untrained(name, tied=tied)
    actor = tiny.in_chunks(Actor(ours, logits=fewest_logits(zoo.base(name), settings())))
    found = by_actor(actor, padding, 0.7)
    for number, other in zip(found, plain, strict=True):
        torch.testing.assert_close(number, other, rtol=0, atol=1e-5)
    learned = gradients(ours, found)
    assert learned.keys() == expected.keys()
    for at, gradient in learned.items():
        torch.testing.assert_close(gradient, expected[at], rtol=1e-5, atol=1e-5, msg=at)
    # The chunks were more than one.
    assert found[0].numel() * zoo.VOCABULARY > 100
    assert isinstance(ours.get_output_embeddings(), VocabularyHead) == (name != "Gemma 2")


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_is_what_it_was(tied: bool, tmp_path: Path) -> None:
    """For who samples, and for who loads what was saved."""
    before, after = (untrained("Llama", tied=tied) for _ in range(2))
    Actor(after, logits=Logits.HEAD)
    assert list(after.state_dict()) == list(before.state_dict())
    assert (after.lm_head.weight is after.model.embed_tokens.weight) == tied
    ids = torch.tensor([rows()[0]])
    assert torch.equal(after(input_ids=ids).logits, before(input_ids=ids).logits)
    drawn = [each.generate(ids, max_new_tokens=5, do_sample=False) for each in (before, after)]
    assert torch.equal(*drawn)
    after.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again.lm_head) is torch.nn.Linear
    assert torch.equal(again(input_ids=ids).logits, before(input_ids=ids).logits)


def test_no_tensor_of_all_logits_exists_where_the_head_makes_them() -> None:
    config = copy.deepcopy(zoo.ARCHITECTURES["Llama"])
    config.vocab_size = 1000
    actor = Actor(AutoModelForCausalLM.from_config(config), logits=Logits.HEAD)
    head: Any = actor.model.get_output_embeddings()
    head.chunk = 16_000
    with Largest() as largest:
        by_actor(actor, "left", 1.0)[0].sum().backward()
    # The head's weight has more numbers than a chunk, and all logits here are fewer.
    assert largest.numel == 1000 * 32
    batch = pad_left([[3] * 41] * 4, 0)
    with Largest() as largest:
        found = actor(*batch[:3], 40, entropy=True, entropy_gradient=True)
        (found.logprobs + found.entropy).sum().backward()
    assert largest.numel == 1000 * 32 < 4 * 40 * 1000
