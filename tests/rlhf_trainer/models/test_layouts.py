"""Which layout gives rows their own logits, asked of shrunken copies; the stage tests train so."""

from typing import Any

import pytest
import torch
import zoo
from flash_twin import flash_attention as flash_attention
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    FalconConfig,
    Gemma3TextConfig,
    GPTNeoConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MptConfig,
    OPTConfig,
    PreTrainedConfig,
    RecurrentGemmaConfig,
    RwkvConfig,
    Starcoder2Config,
    XGLMConfig,
)

from rlhf_api.errors import ConfigError, InputError
from rlhf_trainer.data.packing import PackedBatch, RowLayout
from rlhf_trainer.models.heads import switch_off_dropout
from rlhf_trainer.models.layouts import (
    Probe,
    check_model,
    packed_or_padded,
    row_layout,
)
from rlhf_trainer.models.load import ModelSettings
from rlhf_trainer.models.shrunken import WINDOW, shrunken

CPU = torch.device("cpu")
FIELD = "spec.stages.sft.packing"
SMALL: dict[str, Any] = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 30}
BERT: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}

BLOCK_MASK = ("OPT", "Falcon")
NOT_PACKED = ("BLOOM", "Falcon with ALiBi", "Mamba")
POSITIONS = [name for name in zoo.ARCHITECTURES if name not in (*BLOCK_MASK, *NOT_PACKED)]


def settings(attention: str = "eager", dtype: torch.dtype = torch.float32) -> ModelSettings:
    return ModelSettings(dtype, attention, seed=1)


def layout(config: PreTrainedConfig | str, attention: str = "eager", **asked: Any) -> RowLayout:
    return row_layout(
        zoo.base(config), settings(attention), CPU, FIELD, **{"packing": True} | asked
    )


# Where transformers has no SDPA the stage uses Eager, and so does the copy.
CASES = [(name, attention) for name in zoo.ARCHITECTURES for attention in ("eager", "sdpa")]


@pytest.mark.parametrize(("name", "attention"), [case for case in CASES if case[0] in POSITIONS])
def test_transformers_finds_packed_rows_by_their_positions(name: str, attention: str) -> None:
    assert layout(name, attention) is RowLayout.POSITIONS


@pytest.mark.parametrize(("name", "attention"), [case for case in CASES if case[0] in BLOCK_MASK])
def test_where_it_does_not_our_own_mask_serves(name: str, attention: str) -> None:
    assert layout(name, attention) is RowLayout.BLOCK_MASK


@pytest.mark.parametrize("name", NOT_PACKED)
def test_what_cannot_be_packed_says_why(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        layout(name)
    text = str(caught.value)
    assert text.startswith(f"{FIELD}: ")
    assert "does not give packed rows the logits that they have alone: with positions that" in text
    assert "begin again at 0 a row's logits depend on the rows before it; " in text
    # A library's crash at our own mask is no reason that a person could read.
    assert text.endswith("; it takes no mask of four dimensions; set packing: false")


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_every_architecture_can_be_padded(name: str, attention: str) -> None:
    assert layout(name, attention, packing=False) is RowLayout.PADDED


def test_a_model_that_reads_padding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackedBatch, "attention_mask", lambda *_: torch.zeros(4, 19).long())
    with pytest.raises(ConfigError) as caught:
        layout("Llama", packing=False)
    assert str(caught.value) == (
        "spec.stages.sft.model: LlamaForCausalLM does not give padded rows the logits that they "
        "have alone: with a mask of two dimensions a row's logits are not those that it has alone; "
        "name another model"
    )


@pytest.mark.parametrize(
    "name", ["Mistral", "Mixtral", "Qwen2 with a window", "Gemma 2", "Gemma 3", "Phi-3"]
)
def test_a_mask_of_our_own_loses_a_window(name: str) -> None:
    probe = Probe.of(zoo.base(name), settings(), CPU)
    assert probe.disagreement(RowLayout.BLOCK_MASK) == (
        "a row's logits are not those that it has alone"
    )


def test_rows_share_no_sequence_that_is_longer_than_a_model_has_room_for() -> None:
    """GPT-Neo has a mask of as many tokens as positions, which SFT's sequences never exceed."""
    config = AutoConfig.for_model("gpt_neo", num_layers=2, attention_types=[[["local"], 2]])
    assert layout(config) is RowLayout.POSITIONS
    assert packed_or_padded(zoo.base(config), settings(), CPU) is RowLayout.PADDED
    probe = Probe.of(zoo.base("Llama"), settings(), CPU)
    most = sum(len(row.tokens) for row in probe.wide.rows[:-1])
    assert most > probe.model.config.max_position_embeddings


def test_a_window_of_thousands_is_shrunk_with_the_rest() -> None:
    config = zoo.ARCHITECTURES["Mistral"].__class__(**zoo.ARCHITECTURES["Mistral"].to_dict())
    config.sliding_window = 4096
    probe = Probe.of(zoo.base(config), settings(), CPU)
    assert probe.disagreement(RowLayout.BLOCK_MASK) is not None
    assert probe.disagreement(RowLayout.POSITIONS) is None


def test_what_is_left_out_of_long_rows_alone_is_left_out_of_the_copy_s() -> None:
    """Of so many tokens Doge keeps some, and counts padding among them."""
    config = AutoConfig.for_model("doge", keep_window_size=2048)
    with pytest.raises(ConfigError, match="DogeForCausalLM does not give padded rows the logits"):
        layout(config, packing=False)


def test_the_tokens_that_an_index_chooses_are_chosen_in_each_row() -> None:
    config = AutoConfig.for_model("deepseek_v32", index_topk=2048, num_hidden_layers=2)
    assert shrunken(config).index_topk == WINDOW
    assert layout(config) is RowLayout.POSITIONS


@pytest.mark.parametrize("learning", [True, False])
def test_what_raises_when_it_is_asked_is_not_known(
    monkeypatch: pytest.MonkeyPatch, learning: bool
) -> None:
    """As a model that computes otherwise while it learns, and there asks for what it has not."""
    plain = LlamaForCausalLM.forward

    def forward(model: LlamaForCausalLM, *given: Any, **named: Any) -> Any:
        if model.training is learning:
            raise ValueError("needs labels")
        return plain(model, *given, **named)

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    for refuse in (lambda: layout("Llama"), lambda: check("Llama")):
        with pytest.raises(InputError, match=r"no small copy of it computes \(ValueError: needs "):
            refuse()


def test_others_are_judged_too() -> None:
    neo = GPTNeoConfig(attention_types=[[["global", "local"], 1]], window_size=256, **SMALL)
    assert layout(neo) is RowLayout.POSITIONS
    xglm = XGLMConfig(d_model=32, num_layers=2, attention_heads=4, ffn_dim=64, vocab_size=30)
    assert layout(xglm) is RowLayout.BLOCK_MASK


# A model that is not what it seems


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
@pytest.mark.parametrize("row_kind", [RowLayout.POSITIONS, RowLayout.BLOCK_MASK])
def test_a_model_that_ignores_an_argument_is_found_out(
    monkeypatch: pytest.MonkeyPatch, ignored: str, row_kind: RowLayout
) -> None:
    probe = Probe.of(zoo.base("GPT-2"), settings(), CPU)
    forward = probe.model.forward

    def deaf(**inputs: Any) -> Any:
        if ignored == "attention_mask":
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        else:
            inputs.pop(ignored)
        return forward(**inputs)

    assert probe.disagreement(row_kind) is None
    monkeypatch.setattr(probe.model, "forward", deaf)
    assert probe.disagreement(row_kind) is not None


def test_a_small_leak_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Probe.of(zoo.base("Llama"), settings(), CPU)
    forward = probe.model.forward

    def leaky(**inputs: Any) -> Any:
        found = forward(**inputs)
        found.logits += 1e-4 * inputs["input_ids"].sum()
        return found

    monkeypatch.setattr(probe.model, "forward", leaky)
    for kind in RowLayout:
        assert probe.disagreement(kind) == "a row's logits depend on the rows before it", kind


# Encoders

BIDIRECTIONAL = Gemma3TextConfig(
    use_bidirectional_attention=True, **BERT | {"num_key_value_heads": 2, "head_dim": 8}
)


@pytest.mark.parametrize("packing", [True, False])
def test_an_encoder_is_refused(packing: bool) -> None:
    with pytest.raises(InputError) as caught:
        layout(BertConfig(**BERT), packing=packing)
    assert str(caught.value) == (
        "spec.stages.sft.model: in BertLMHeadModel a token sees those after it, so that it cannot "
        "learn to write them; name a causal language model, or set is_decoder: true in its "
        "config.json if it was trained as one"
    )
    assert layout(BertConfig(is_decoder=True, **BERT), packing=False) is RowLayout.PADDED


def test_so_is_a_decoder_that_was_made_one() -> None:
    for refuse in (lambda: layout(BIDIRECTIONAL), lambda: check(BIDIRECTIONAL)):
        with pytest.raises(InputError, match=r"in Gemma3ForCausalLM a token .*language model$"):
            refuse()


def check(config: PreTrainedConfig | str, attention: str = "sdpa") -> None:
    check_model(zoo.base(config), settings(attention))


@pytest.mark.parametrize("name", list(zoo.ARCHITECTURES))
def test_these_are_causal(name: str) -> None:
    check(name)


# What reads padding

RECURRENT = RecurrentGemmaConfig(num_hidden_layers=3, num_attention_heads=4, hidden_size=32)


@pytest.mark.parametrize("name", list(zoo.ARCHITECTURES))
def test_these_do_not_read_padding_before_a_prompt(name: str) -> None:
    check_model(zoo.base(name), settings(), left_padding=True)


@pytest.mark.parametrize("config", [RECURRENT, RwkvConfig(num_hidden_layers=2, hidden_size=32)])
@pytest.mark.parametrize("causal", [True, False])
def test_a_model_that_reads_padding_before_a_prompt_is_no_model_of_ppo(
    config: PreTrainedConfig, causal: bool
) -> None:
    check_model(zoo.base(config), settings(), causal=causal)
    with pytest.raises(InputError) as caught:
        check_model(zoo.base(config), settings(), causal=causal, left_padding=True)
    text = str(caught.value)
    assert text.startswith("spec.stages.sft.model: R")
    assert " reads padding before a row, as PPO has it before prompts: " in text
    assert text.endswith("; name another model")


# What draws at random while it learns

FALCON: dict[str, Any] = zoo.ARCHITECTURES["Falcon"].to_dict()
OPT: dict[str, Any] = zoo.ARCHITECTURES["OPT"].to_dict()


@pytest.mark.parametrize(
    "config",
    [
        OPTConfig(**OPT | {"layerdrop": 0.9, "dropout": 0.5}),
        MixtralConfig(**zoo.ARCHITECTURES["Mixtral"].to_dict() | {"router_jitter_noise": 0.5}),
        Starcoder2Config(
            residual_dropout=0.5, embedding_dropout=0.5, num_key_value_heads=2, **BERT
        ),
        XGLMConfig(
            d_model=32,
            num_layers=2,
            attention_heads=4,
            ffn_dim=64,
            vocab_size=30,
            activation_dropout=0.5,
        ),
    ],
    ids=["OPT", "Mixtral", "StarCoder 2", "XGLM"],
)
def test_what_is_left_out_or_noisy_is_switched_off(config: PreTrainedConfig) -> None:
    check(config)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    ids = torch.arange(3, 14).unsqueeze(0)
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        drawn = model.train()(input_ids=ids).logits
        switch_off_dropout(model)
        close = torch.allclose(model.train()(input_ids=ids).logits, expected, atol=1e-6)
    assert not torch.allclose(drawn, expected, atol=1e-3)
    assert close


@pytest.mark.parametrize("packing", [True, False])
def test_dropout_out_of_our_reach_is_refused(packing: bool) -> None:
    config = FalconConfig(**FALCON | {"hidden_dropout": 0.5})
    with pytest.raises(InputError) as caught:
        layout(config, packing=packing)
    assert str(caught.value) == (
        "spec.stages.sft.model: FalconForCausalLM draws at random while it learns (dropout, or a "
        "noise); set what names it in its config.json to 0"
    )
    for causal in (True, False):
        with pytest.raises(InputError, match="draws at random"):
            check_model(zoo.base(config), settings(), causal=causal)


def test_a_reward_model_may_see_all_of_a_text() -> None:
    check_model(zoo.base(BIDIRECTIONAL), settings(), causal=False)


def test_a_short_limit_of_positions_is_not_the_copy_s() -> None:
    config = MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=30, max_seq_len=8)
    assert layout(config, packing=False) is RowLayout.PADDED


# What cannot be asked


UNKNOWN = ["falcon_h1", "zamba2", "t5"]
"""Of the first two a small copy of the library's defaults does not compute."""


@pytest.mark.parametrize("kind", UNKNOWN)
@pytest.mark.parametrize("causal", [True, False])
def test_a_model_is_refused_of_which_nothing_is_known(kind: str, causal: bool) -> None:
    config = AutoConfig.for_model(kind)
    for refuse in (
        lambda: layout(config),
        lambda: layout(config, packing=False),
        lambda: check_model(zoo.base(config), settings(), causal=causal),
    ):
        with pytest.raises(InputError) as caught:
            refuse()
        text = str(caught.value)
        assert text.startswith(f"spec.stages.sft.model: whether {kind} gives rows of a batch ")
        assert "is not known: no small copy of it computes (" in text
        assert text.endswith("); name another model")
        assert len(text) < 450


def test_a_copy_that_would_be_large_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_trainer.models.layouts.MOST_PARAMETERS", 10_000)
    with pytest.raises(InputError, match=r"no small copy .*it would have \d\d,\d{3} parameters"):
        layout("Llama")


def test_the_stage_draws_as_if_nothing_had_been_asked() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    layout("Llama")
    assert torch.equal(torch.rand(3), expected)


# FlashAttention


@pytest.mark.parametrize(
    "name", [name for name in POSITIONS if name not in ("Gemma 2", "GPT-J", "GPT-2")]
)
def test_flash_attention_packs_a_batch_into_one_sequence(name: str, flash_attention: str) -> None:
    assert layout(name, flash_attention) is RowLayout.ONE_SEQUENCE
    assert layout(name, flash_attention, packing=False) is RowLayout.PADDED


def test_flash_attention_sees_no_rows_in_several_sequences(flash_attention: str) -> None:
    probe = Probe.of(zoo.base("Mistral"), settings(flash_attention), CPU)
    assert probe.disagreement(RowLayout.POSITIONS) == (
        "a row's logits depend on the rows before it"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flash_attention_is_asked_in_the_precision_of_the_stage(
    dtype: torch.dtype, flash_attention: str
) -> None:
    probe = Probe.of(zoo.base("Mistral"), settings(flash_attention, dtype), CPU)
    assert probe.model.dtype == dtype
    assert probe.disagreement(RowLayout.ONE_SEQUENCE) is None
    assert probe.disagreement(RowLayout.POSITIONS) is not None
    assert Probe.of(zoo.base("Mistral"), settings("sdpa", dtype), CPU).model.dtype == torch.float32


def test_without_its_package_flash_attention_is_refused_as_when_loading() -> None:
    with pytest.raises(ConfigError, match=r"spec\.stages\.sft\.attentionImplementation: .*SDPA"):
        layout("Llama", "flash_attention_2")
