"""The decode loop against `generate`, whatever rows are beside a row and whatever pads it."""

from typing import Any

import decoded
import pytest
import torch
import zoo
from torch import Tensor
from transformers import DynamicCache, RwkvConfig, RwkvForCausalLM
from transformers.cache_utils import DynamicLayer

from rlhf_trainer.data.collate import pad_left
from rlhf_trainer.generation.cache import selects_rows
from rlhf_trainer.generation.counter import RowSeeds
from rlhf_trainer.generation.decoding import Decoder
from rlhf_trainer.generation.waves import bucket
from rlhf_trainer.rl import token_statistics

CPU = torch.device("cpu")
SELECTABLE = [name for name in zoo.ARCHITECTURES if name != "Mamba"]


@pytest.mark.parametrize("name", SELECTABLE)
def test_greedy_answers_are_those_of_generate(name: str) -> None:
    model = decoded.model_of(name)
    expected = decoded.generated(model)
    lengths = {len(answer) for answer in expected}
    assert len(lengths) > 2, "answers of one length leave the batch together"
    for wave, rows in ((5, 10**6), (6, 0)):
        responses = decoded.decoded(model, top_k=1, wave=wave, room=lambda _, rows=rows: rows)
        assert decoded.lists(responses) == expected, (wave, rows)


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "Mistral"])
def test_greedy_answers_are_those_of_generate_with_eager_attention(name: str) -> None:
    model = decoded.model_of(name, "eager")
    expected = decoded.generated(model)
    assert decoded.lists(decoded.decoded(model, top_k=1)) == expected


def test_a_model_whose_past_is_no_keys_and_values_is_known() -> None:
    known = {name: selects_rows(decoded.model_of(name)) for name in zoo.ARCHITECTURES}
    assert known == dict.fromkeys(SELECTABLE, True) | {"Mamba": False}


def test_a_model_with_a_state_beside_its_layers_is_known() -> None:
    """transformers says of its layers that they keep keys and values."""
    config = RwkvConfig(
        vocab_size=22, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2
    )
    assert [type(layer) for layer in DynamicCache(config=config).layers] == [DynamicLayer] * 2
    assert not selects_rows(RwkvForCausalLM(config))


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "Gemma 3"])
def test_sampled_answers_depend_on_no_other_row(name: str) -> None:
    model = decoded.model_of(name)
    together = decoded.decoded(model)
    answers = decoded.lists(together)
    assert len({len(answer) for answer in answers}) > 5
    for row in (0, 7, 23):
        alone = Decoder(model, decoded.sampling(), CPU).respond(
            [decoded.PROMPTS[row]], RowSeeds(5, [row])
        )
        assert decoded.lists(alone) == [answers[row]]
        torch.testing.assert_close(
            alone.logprobs[0], together.logprobs[row, : alone.tokens.shape[1]], rtol=0, atol=1e-5
        )
    turned = Decoder(model, decoded.sampling(), CPU).respond(
        decoded.PROMPTS[::-1], RowSeeds(5, range(23, -1, -1))
    )
    assert decoded.lists(turned) == answers[::-1]


def test_lengths_and_ends_are_explicit() -> None:
    found = decoded.decoded(decoded.model_of("Llama"))
    ended = 0
    for row, answer in enumerate(decoded.lists(found)):
        assert answer == decoded.cut(answer)
        assert bool(found.ended[row]) == (answer[-1] in decoded.STOPS)
        assert found.ended[row] or len(answer) == 20
        assert (found.tokens[row, len(answer) :] == decoded.PAD).all()
        assert (found.logprobs[row, len(answer) :] == 0).all()
        assert (found.logprobs[row, : len(answer)] < 0).all()
        ended += int(found.ended[row])
    assert 0 < ended < 24
    assert found.tokens.shape[1] == int(found.lengths.max())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", ["Llama", "GPT-2", "OPT"])
def test_logprobs_are_those_of_one_plain_forward_pass(name: str, temperature: float) -> None:
    model = decoded.model_of(name)
    found = decoded.decoded(model, temperature=temperature)
    for row, answer in enumerate(decoded.lists(found)):
        tokens = torch.tensor([[*decoded.PROMPTS[row], *answer]])
        with torch.no_grad():
            logits = model(input_ids=tokens).logits[:, :-1]
        expected = token_statistics(logits, tokens[:, 1:], temperature).logprobs
        torch.testing.assert_close(
            found.logprobs[row, : len(answer)], expected[0, -len(answer) :], rtol=0, atol=1e-5
        )


class Counting:
    """A model's forward pass that counts the rows it is given."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.rows: list[int] = []
        self.columns: list[int] = []

    def __call__(self, **inputs: Any) -> Any:
        self.rows.append(len(inputs["input_ids"]))
        self.columns.append(inputs["attention_mask"].shape[1])
        return self.model(**inputs)


def test_rows_that_have_ended_are_not_computed() -> None:
    model = decoded.model_of("Llama")
    forward = Counting(model)
    found = Decoder(model, decoded.sampling(wave=24), CPU, forward=forward).respond(
        decoded.PROMPTS, RowSeeds(5, range(24))
    )
    left = [int((found.lengths > step).sum()) for step in range(found.tokens.shape[1])]
    assert forward.rows == [24, *map(bucket, left[1:])]
    assert found.row_steps == sum(forward.rows)
    assert left[-1] < 6


def test_columns_that_only_pad_leave_with_their_rows() -> None:
    prompts = [[3, 4], [5], [3 + at % 19 for at in range(30)]]
    model = decoded.model_of("Llama")
    # The first token of the long prompt ends its answer.
    first = decoded.decoded(model, prompts, top_k=1).tokens[2, 0]
    settings = decoded.sampling(top_k=1, stop_ids=(int(first),))
    forward = Counting(model)
    found = Decoder(model, settings, CPU, forward=forward).respond(prompts, RowSeeds(5, range(3)))
    assert found.lengths.tolist()[2] == 1
    assert forward.columns[0] == 30
    assert forward.columns[1] == 3


def test_waves_take_turns_where_there_is_no_room_for_all() -> None:
    model = decoded.model_of("Llama")
    forward = Counting(model)
    Decoder(
        model,
        decoded.sampling(wave=1, room=lambda tokens: 120 // tokens, stop_ids=(30,)),
        CPU,
        forward=forward,
    ).respond(decoded.PROMPTS, RowSeeds(5, range(24)))
    # Of 21 to 29 tokens each.
    assert max(forward.rows[5:]) == 5


def test_a_request_to_stop_ends_all_rows_at_the_next_token() -> None:
    asked: list[int] = []

    def at_third() -> bool:
        asked.append(1)
        return len(asked) >= 3

    model = decoded.model_of("Llama")
    settings = decoded.sampling(stop_ids=(21,), max_response_length=50)
    found = Decoder(model, settings, CPU, asked_to_stop=at_third).respond(
        decoded.PROMPTS, RowSeeds(5, range(24))
    )
    assert found.tokens.shape[1] == 3


class Spoilt:
    """Logits that are no distribution in one row, from the third token on."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.calls = 0

    def __call__(self, **inputs: Any) -> Any:
        output = self.model(**inputs)
        self.calls += 1
        if self.calls == 3:
            output.logits[0] = torch.nan
        return output


def test_a_row_whose_logits_are_no_distribution_ends_with_nan() -> None:
    model = decoded.model_of("Llama")
    settings = decoded.sampling(stop_ids=(1,), wave=24)
    prompts = decoded.PROMPTS[:4]
    plain = Decoder(model, settings, CPU).respond(prompts, RowSeeds(5, range(4)))
    assert int(plain.lengths.min()) > 3
    found = Decoder(model, settings, CPU, forward=Spoilt(model)).respond(
        prompts, RowSeeds(5, range(4))
    )
    # The shortest prompt stands first.
    assert found.lengths[0] == 3
    assert found.tokens[0, 2] == 1
    assert found.logprobs[0, 2].isnan()
    assert int(found.logprobs.isnan().sum()) == 1
    assert torch.equal(found.tokens[1:], plain.tokens[1:])


def test_a_model_without_logits_to_keep_is_decoded() -> None:
    model = decoded.model_of("Llama")

    class Plain(torch.nn.Module):
        config = model.config

        def forward(
            self,
            input_ids: Tensor,
            attention_mask: Tensor,
            position_ids: Tensor,
            past_key_values: Any,
            use_cache: bool,
        ) -> Any:
            return model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
            )

    plain: Any = Plain()
    assert decoded.lists(decoded.decoded(plain)) == decoded.lists(decoded.decoded(model))


def test_padding_of_prompts_is_read_by_no_row() -> None:
    """Prompts of one length need no padding, and are answered alike beside longer ones."""
    model = decoded.model_of("GPT-NeoX")
    short = [prompt for prompt in decoded.PROMPTS if len(prompt) == 5]
    assert pad_left(short, 0).attention_mask.all()
    alone = decoded.decoded(model, short, top_k=1)
    beside = decoded.decoded(model, [*short, [3] * 40], top_k=1)
    assert decoded.lists(beside)[: len(short)] == decoded.lists(alone)
