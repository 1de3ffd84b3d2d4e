"""Whole texts and their parts, with tokenizers as families ship them, in little."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import subwords
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhf_trainer.data.tokenize.offsets import (
    Apart,
    ByOffsets,
    TokenizedText,
    adds_prefix_space,
    cutter,
    has_offsets,
)

TOKENIZERS = {name: make() for name, make in subwords.KINDS.items()}
CUTTERS = {name: ByOffsets(tokenizer) for name, tokenizer in TOKENIZERS.items()}
TEXT = st.text(st.sampled_from("the catso :12\n好坏é"), min_size=1, max_size=12)


def _tokens(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    return list(tokenizer.convert_ids_to_tokens(ids))


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


each_kind = pytest.mark.parametrize("kind", subwords.KINDS)


@each_kind
@settings(max_examples=50)
@given(before=TEXT, after=TEXT)
def test_the_parts_are_the_whole_unless_a_token_straddles(
    kind: str, before: str, after: str
) -> None:
    tokenizer, cut = TOKENIZERS[kind], CUTTERS[kind]

    (head,) = cut.texts([(before, [])])
    (tail,) = cut.continued([(head, after)])

    assert head.ids == _encoded(tokenizer, before)
    assert tail.is_apart or head.ids + tail.ids == _encoded(tokenizer, before + after)


@each_kind
@settings(max_examples=50)
@given(parts=st.lists(TEXT, min_size=2, max_size=4))
def test_no_token_straddles_a_place(kind: str, parts: list[str]) -> None:
    text = "".join(parts)
    places = [len("".join(parts[:count])) for count in range(1, len(parts))]

    (found,) = CUTTERS[kind].texts([(text, places)])

    assert found.starts == sorted(found.starts)
    if found.is_apart:
        # Nothing is lost or put in: each place parts the tokens of two texts.
        bounds = [0, *places, len(text)]
        for start, end in pairwise(bounds):
            part = [i for i, at in zip(found.ids, found.starts, strict=True) if start <= at < end]
            assert TOKENIZERS[kind].decode(part).strip() == text[start:end].strip()
    else:
        assert found.ids == _encoded(TOKENIZERS[kind], text)


@pytest.mark.parametrize(
    ("kind", "before", "after", "tokens"),
    [
        ("Metaspace", "the ca", "t sat", ["t", "▁sat"]),
        ("Metaspace, always", "the ca", "t sat", ["t", "▁sat"]),
        ("Llama 2, legacy", "the ca", "t sat", ["t", "▁", "s", "at"]),
        ("byte-level", "the ca", "t sat", ["t", "Ġsat"]),
        ("byte-level, prefix", "the ca", "t sat", ["t", "Ġsat"]),
        ("byte-level", "the ", "sat", ["sat"]),
        ("byte-level", "非", "常", ["å¸¸"]),
    ],
)
def test_what_a_token_straddles_is_encoded_apart_without_a_prefix_space(
    kind: str, before: str, after: str, tokens: list[str]
) -> None:
    (head,) = CUTTERS[kind].texts([(before, [])])

    (tail,) = CUTTERS[kind].continued([(head, after)])

    assert tail.is_apart
    assert _tokens(TOKENIZERS[kind], tail.ids) == tokens


def test_a_token_of_bytes_of_two_characters_straddles() -> None:
    tokenizer = subwords.straddling_bytes()
    cut = ByOffsets(tokenizer)
    assert _tokens(tokenizer, _encoded(tokenizer, "éé")) == ["Ã", "©Ã", "©"]

    (head, whole) = cut.texts([("é", []), ("éé", [1])])
    (tail,) = cut.continued([(head, "é")])

    assert (head.ids, tail.ids) == (_encoded(tokenizer, "é"),) * 2
    assert tail.is_apart
    assert whole == TokenizedText(head.ids * 2, [0, 0, 1, 1], "é", head.ids, True, True)


def test_one_unknown_token_for_both_sides_is_none_of_the_first() -> None:
    cut = ByOffsets(_fusing())

    (head,) = cut.texts([("xx", [])])
    (tail,) = cut.continued([(head, "xxa")])

    assert (head.ids, tail.ids, tail.is_apart) == ([0], [0, 1], True)


def _fusing() -> Any:
    model = models.BPE({"<unk>": 0, "a": 1}, [], unk_token="<unk>", fuse_unk=True)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>")


def test_behind_a_special_token_the_text_goes_on_as_behind_any() -> None:
    tokenizer = TOKENIZERS["Metaspace, always"]
    text = "assistant: the</s>the"

    (found,) = CUTTERS["Metaspace, always"].texts([(text, [11, 14])])

    assert _tokens(tokenizer, found.ids)[-5:] == ["▁", "t", "he", "</s>", "▁the"]
    assert found.starts[-5:] == [10, 11, 12, 14, 18]
    assert (found.last, found.last_is_bare, found.is_apart) == ("</s>the", False, True)


def test_a_special_token_takes_the_white_space_beside_it_and_straddles_nothing() -> None:
    tokenizer = subwords.byte_level()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|x|>", lstrip=True, rstrip=True)]}
    )
    text = "the cat <|x|>\nthe"

    (found,) = ByOffsets(tokenizer).texts([(text, [8, 13])])

    assert not found.is_apart
    assert _tokens(tokenizer, found.ids) == ["the", "Ġcat", "<|x|>", "the"]


def test_without_offsets_each_side_is_encoded_by_itself(tmp_path: Path) -> None:
    tokenizer = subwords.without_offsets(tmp_path)
    assert not has_offsets(tokenizer)
    cut = cutter(tokenizer)
    assert isinstance(cut, Apart)

    (found,) = cut.texts([("aab", [1])])
    (tail,) = cut.continued([(found, "b</s>")])

    assert (found.ids, found.starts) == ([1, 3, 2], [0, 1, 1])
    assert tail == ([2, 5], False)
    assert not adds_prefix_space(tokenizer)


@pytest.mark.parametrize(
    ("kind", "adds"), [(kind, "never" not in kind and kind != "byte-level") for kind in TOKENIZERS]
)
def test_a_prefix_space_is_seen(kind: str, adds: bool) -> None:
    assert adds_prefix_space(TOKENIZERS[kind]) == adds


def test_a_class_that_changes_the_text_itself_has_no_offsets_of_use() -> None:
    class Joining(type(subwords.byte_level())):  # type: ignore[misc]
        def _encode_plus(self, text: str, **options: Any) -> Any:
            return super()._encode_plus(text.replace("\n", " "), **options)

    own = Joining(tokenizer_object=subwords.byte_level().backend_tokenizer)

    assert not has_offsets(own)
    assert has_offsets(subwords.byte_level())
