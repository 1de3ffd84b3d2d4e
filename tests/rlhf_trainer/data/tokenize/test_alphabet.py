"""A text is refused of which a tokenizer would leave something out, or which it cannot take."""

import json
from pathlib import Path
from typing import Any

import pytest
import subwords
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf_api.errors import DataError, InputError
from rlhf_trainer.data.parse.formats import SFTRow
from rlhf_trainer.data.read.rows import Source
from rlhf_trainer.data.tokenize.alphabet import Alphabet
from rlhf_trainer.data.tokenize.tokenized import sft_examples
from rlhf_trainer.models.tokenizers import load_tokenizer

END = "</s>"
LETTERS = "abcdefghijklmnopqrstuvwxyz :0123456789\n"


def finished(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([END, "<é>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def characters(**settings: Any) -> Tokenizer:
    """BPE of single characters."""
    tokens = [END, "<é>", *LETTERS]
    return Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, [], **settings))


def of_bytes(lacking: str = "") -> Tokenizer:
    tokens = [END, "<é>", *sorted({*pre_tokenizers.ByteLevel.alphabet()} - {*lacking})]
    tokenizer = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def words() -> Tokenizer:
    """A unigram model, which raises at what it does not know."""
    return Tokenizer(
        models.Unigram([(END, 0.0), ("<é>", 0.0), *((each, -1.0) for each in LETTERS)])
    )


def learned(tokenizer: Tokenizer, *responses: str) -> int:
    """Number of rows."""
    rows = [SFTRow(Source("data.jsonl", at), "say", text) for at, text in enumerate(responses, 1)]
    return len(sft_examples(rows, finished(tokenizer), max_length=99, over_long="Drop")[0])


def stripping(tokenizer: Tokenizer) -> Tokenizer:
    """Without accents, as its maker meant it."""
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "text", "said"),
    [
        pytest.param(characters(), "héllo", "would leave out 'é'", id="characters"),
        pytest.param(
            characters(byte_fallback=True), "héllo", "out 'é'", id="fallback without bytes"
        ),
        pytest.param(of_bytes("©"), "héllo", "would leave out 'é'", id="a byte of two"),
        pytest.param(of_bytes("Ã"), "the €é", "would leave out 'é'", id="the other byte"),
        pytest.param(words(), "héllo", "cannot encode its text (", id="what raises"),
    ],
)
def test_the_row_is_named(tokenizer: Tokenizer, text: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        learned(tokenizer, "hello", text, "hello")
    assert str(caught.value).startswith("data.jsonl: line 2: the tokenizer ")
    assert said in str(caught.value)
    assert "name a model whose tokenizer has an unknown token or all bytes" in str(caught.value)


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        pytest.param(characters(), "hello\n\tyou", id="white space"),
        pytest.param(characters(), "hello <é>", id="in an added token"),
        pytest.param(of_bytes("©"), "hello <é> you", id="bytes in an added token"),
        pytest.param(stripping(characters()), "hello e\u0301", id="meant to go"),
        pytest.param(characters(unk_token=END), "héllo", id="an unknown token"),
        pytest.param(of_bytes(), "héllo 好", id="all bytes"),
    ],
)
def test_what_is_all_there_is_learned(tokenizer: Tokenizer, text: str) -> None:
    assert learned(tokenizer, text) == 1


@pytest.mark.parametrize("kind", subwords.KINDS)
def test_usual_tokenizers_are_not_looked_at(kind: str) -> None:
    backend = subwords.KINDS[kind]().backend_tokenizer
    assert Alphabet.of(backend, json.loads(backend.to_str())) is None


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(models.WordLevel({END: 0, "the": 1}, unk_token="[UNK]"), id="WordLevel"),
        pytest.param(models.WordPiece({END: 0, "the": 1}, unk_token="[UNK]"), id="WordPiece"),
        pytest.param(models.Unigram([(END, 0.0), ("the", -1.0)]), id="Unigram"),
    ],
)
def test_a_tokenizer_without_its_unknown_token_is_refused_when_it_is_opened(
    tmp_path: Path, model: Any
) -> None:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([END])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(tmp_path)
    with pytest.raises(InputError) as caught:
        load_tokenizer(tmp_path, pad_token=None, field="spec.stages.sft.model")
    assert "its tokenizer cannot encode every text: " in str(caught.value)
    assert "give its tokenizer.json an unknown token" in str(caught.value)
