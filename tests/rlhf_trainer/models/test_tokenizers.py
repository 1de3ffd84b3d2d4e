"""Tokenizers as families ship them, in little."""

import json
from pathlib import Path
from typing import Any

import pytest
import subwords
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CTRLTokenizer, PreTrainedTokenizerFast

from rlhf_api.errors import ConfigError, InputError
from rlhf_trainer.data.read.pointers import POINTER
from rlhf_trainer.data.read.uris import Hub
from rlhf_trainer.models.tokenizers import load_tokenizer, stop_token_ids

FIELD = "spec.stages.sft.model"
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|end|>{% endfor %}"


def _saved(
    folder: Path,
    special: list[str],
    *,
    words: str = "ab",
    byte_fallback: bool = False,
    **named: Any,
) -> Path:
    """A folder with a tokenizer of these special tokens and one-letter words."""
    tokens = [*special, *words, "ab"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    model = models.BPE(
        vocabulary, [("a", "b")], unk_token=named.get("unk_token"), byte_fallback=byte_fallback
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(str(folder))
    return folder


def _load(
    folder: Path | Hub, pad_token: str | None = None, chat_template: str | None = None
) -> Any:
    return load_tokenizer(folder, pad_token=pad_token, chat_template=chat_template, field=FIELD)


@pytest.mark.parametrize(
    ("special", "named", "pad"),
    [
        pytest.param(
            ["<s>", "</s>", "<p>"], {"eos_token": "</s>", "pad_token": "<p>"}, "<p>", id="own"
        ),
        pytest.param(["</s>", "<pad>"], {"eos_token": "</s>"}, "<pad>", id="made for it"),
        pytest.param(["<e>", "<|padding|>"], {"eos_token": "<e>"}, "<|padding|>", id="GPT-NeoX"),
        pytest.param(
            ["<|endoftext|>", "<|fim_pad|>"],
            {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
            "<|fim_pad|>",
            id="Qwen2.5, pad is EOS",
        ),
        pytest.param(
            ["<|eot_id|>", "<|reserved_special_token_1|>", "<|reserved_special_token_0|>"],
            {"eos_token": "<|eot_id|>"},
            "<|reserved_special_token_1|>",
            id="Llama 3, lowest id",
        ),
        pytest.param(
            ["<|eot_id|>", "<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"],
            {"eos_token": "<|eot_id|>"},
            "<|finetune_right_pad_id|>",
            id="Llama 3.1",
        ),
        pytest.param(["<e>", "<|extra_0|>"], {"eos_token": "<e>"}, "<|extra_0|>", id="Qwen"),
        pytest.param(["<e>", "<unused5>"], {"eos_token": "<e>"}, "<unused5>", id="Gemma"),
        pytest.param(["<e>", "[unused5]"], {"eos_token": "<e>"}, "[unused5]", id="BERT"),
        pytest.param(
            ["<unk>", "<s>", "</s>"],
            {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>", "byte_fallback": True},
            "<unk>",
            id="Llama 2, byte fallback",
        ),
        pytest.param(
            ["<pad>", "</s>", "[PAD]"],
            {"eos_token": "</s>", "bos_token": "<pad>"},
            "[PAD]",
            id="not BOS",
        ),
        pytest.param(
            ["<unused0>", "<unused1>"], {"eos_token": "<unused0>"}, "<unused1>", id="not EOS"
        ),
    ],
)
def test_a_token_to_pad_with_is_found(
    tmp_path: Path, special: list[str], named: dict[str, Any], pad: str
) -> None:
    tokenizer = _load(_saved(tmp_path, special, **named))

    assert tokenizer.pad_token == pad
    assert tokenizer.pad_token_id == special.index(pad) != tokenizer.eos_token_id
    assert len(tokenizer) == len(special) + 3

    tokenizer.save_pretrained(str(tmp_path / "again"))
    assert _load(tmp_path / "again").pad_token == pad


@pytest.mark.parametrize(
    ("fallback", "named", "pad"),
    [
        pytest.param(
            False, dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<e>"), "ÿ", id="GPT-2"
        ),
        pytest.param(False, {"eos_token": "<e>", "pad_token": "<e>"}, "ÿ", id="pad is EOS"),
        pytest.param(True, {"eos_token": "<e>"}, "<0xFF>", id="byte fallback, nothing unknown"),
    ],
)
def test_where_every_byte_has_a_token_the_one_that_no_text_has_pads(
    tmp_path: Path, fallback: bool, named: dict[str, Any], pad: str
) -> None:
    subwords.bare_bytes(fallback=fallback, **named).save_pretrained(str(tmp_path))
    tokenizer = _load(tmp_path)

    assert tokenizer.pad_token == pad
    texts = ["".join(map(chr, range(32, 700))), "好坏 😀 \U0010ffff"]
    assert not any(tokenizer.pad_token_id in ids for ids in tokenizer(texts)["input_ids"])
    tokenizer.save_pretrained(str(tmp_path / "again"))
    assert _load(tmp_path / "again").pad_token == pad


@pytest.mark.parametrize(
    ("special", "named", "state"),
    [
        pytest.param(
            ["<|endoftext|>"],
            dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
            "has no pad token",
            id="no bytes",
        ),
        pytest.param(
            ["</s>"],
            {"eos_token": "</s>", "pad_token": "</s>"},
            "has EOS (</s>) as its pad token",
            id="pad is EOS",
        ),
        pytest.param(
            ["</s>", "<|end|>"],
            {"eos_token": "</s>", "pad_token": "<|end|>", "chat_template": CHAT},
            "has the end of a turn (<|end|>) as its pad token",
            id="pad ends a turn",
        ),
        pytest.param(
            ["<unk>", "</s>"],
            {"eos_token": "</s>", "unk_token": "<unk>"},
            "has no pad token",
            id="the unknown token occurs in texts",
        ),
        pytest.param(
            ["</s>", "<|tool|>", "<reserved>", "<mask>"],
            {"eos_token": "</s>"},
            "no pad",
            id="others",
        ),
    ],
)
def test_no_token_to_pad_with_is_an_error_that_names_pad_token(
    tmp_path: Path, special: list[str], named: dict[str, Any], state: str
) -> None:
    folder = _saved(tmp_path, special, **named)

    with pytest.raises(ConfigError) as caught:
        _load(folder)

    for word in [f"{FIELD}.padToken: ", str(folder), state, "set padToken to a token of its"]:
        assert word in str(caught.value)
    assert ConfigError.exit_code == 78


def test_pad_token_of_the_spec_wins(tmp_path: Path) -> None:
    folder = _saved(tmp_path, ["</s>", "<pad>"], eos_token="</s>", pad_token="<pad>")

    tokenizer = _load(folder, pad_token="b")

    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("b", 3)


@pytest.mark.parametrize(
    ("pad_token", "words"),
    [
        ("<none>", ["'<none>' is not in the vocabulary of", "name one of its tokens"]),
        ("ba", ["'ba' is not in the vocabulary of"]),
        ("</s>", ["'</s>' is EOS", "name another token"]),
        ("<|end|>", ["'<|end|>' is the end of a turn", "name another token"]),
    ],
)
def test_a_pad_token_that_cannot_serve_is_named(
    tmp_path: Path, pad_token: str, words: list[str]
) -> None:
    folder = _saved(tmp_path, ["</s>", "<pad>", "<|end|>"], eos_token="</s>", chat_template=CHAT)

    with pytest.raises(ConfigError) as caught:
        _load(folder, pad_token=pad_token)

    for word in [f"{FIELD}.padToken: ", *words]:
        assert word in str(caught.value)


def test_a_tokenizer_without_eos_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^{FIELD}\.uri: .*no EOS token.*set eos_token in"):
        _load(_saved(tmp_path, ["<pad>"], pad_token="<pad>"))


def test_a_tokenizer_without_offsets_may_not_put_a_space_before_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subwords.without_offsets(tmp_path).save_pretrained(str(tmp_path))
    assert _load(tmp_path).pad_token == "<pad>"

    # What a class with SentencePiece's own library does; that is not installed with the trainer.
    def marked(tokenizer: CTRLTokenizer, text: str) -> list[str]:
        return ["▁", *text]

    monkeypatch.setattr(CTRLTokenizer, "_tokenize", marked)
    with pytest.raises(InputError) as caught:
        _load(tmp_path)

    for word in [f"{FIELD}.uri: {tmp_path}: CTRLTokenizer puts a space", "convert it to"]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["there is no folder", "correct the path"]),
        ({}, ["holds no tokenizer.json", "copy the tokenizer of the model"]),
        ({"tokenizer.json": "not json", "tokenizer_config.json": "{}"}, ["no tokenizer can be"]),
        ({"config.json": '{"model_type": "unheard-of"}'}, ["holds no tokenizer.json"]),
        ({"vocab.json": "{}", "config.json": "{}"}, ["no tokenizer can be loaded"]),
    ],
)
def test_a_place_without_a_tokenizer_is_named(
    tmp_path: Path, content: dict[str, str] | None, words: list[str]
) -> None:
    folder = tmp_path / "model"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)

    with pytest.raises(InputError) as caught:
        _load(folder)

    for word in [f"{FIELD}.uri: ", str(folder), *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_spec_s_template_replaces_the_tokenizer_s(tmp_path: Path) -> None:
    own = "{{ messages[0].content }}"
    special = ["</s>", "<pad>", "<|end|>"]
    folder = _saved(tmp_path, special, eos_token="</s>", chat_template=own)
    template = CHAT + "{% if add_generation_prompt %}<assistant>{% endif %}"

    assert _load(folder).chat_template == own
    assert _load(folder, chat_template=template).chat_template == template


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}", ["cannot be rendered", "endfor", "correct the template"]),
        ("{{ messages[0].content + 3 }}", ["cannot be rendered"]),
        ("{{ nothing.at.all }}", ["cannot be rendered", "undefined"]),
        ("hello", ["leaves out what the user says"]),
    ],
)
def test_a_template_that_cannot_be_used_is_named(
    tmp_path: Path, template: str, words: list[str]
) -> None:
    folder = _saved(tmp_path, ["</s>", "<pad>"], eos_token="</s>")

    with pytest.raises(ConfigError) as caught:
        _load(folder, chat_template=template)

    for word in [f"{FIELD}.chatTemplate: ", template[:20], *words]:
        assert word in str(caught.value)


class TestStopTokens:
    FIELD = "spec.stages.ppo.stopTokens"

    def _tokenizer(self, folder: Path) -> Any:
        special = ["</s>", "<pad>", "<unk>", "<|end|>"]
        return _load(_saved(folder, special, eos_token="</s>", unk_token="<unk>"))

    def test_each_is_an_id(self, tmp_path: Path) -> None:
        tokenizer = self._tokenizer(tmp_path)

        assert stop_token_ids(tokenizer, ["<|end|>", "ab", "<|end|>"], self.FIELD) == (3, 6)
        assert stop_token_ids(tokenizer, [], self.FIELD) == ()
        assert stop_token_ids(tokenizer, ["<unk>"], self.FIELD) == (2,)

    @pytest.mark.parametrize("token", ["ba", "<|end|></s>", "z", " "])
    def test_what_is_not_one_token_is_named(self, tmp_path: Path, token: str) -> None:
        tokenizer = self._tokenizer(tmp_path)

        with pytest.raises(ConfigError) as caught:
            stop_token_ids(tokenizer, ["<|end|>", token], self.FIELD)

        for word in [f"{self.FIELD}[1]: {token!r} ", "not one token", "name a single token"]:
            assert word in str(caught.value)

    def test_a_text_that_the_tokenizer_makes_one_token_of_will_do(self, tmp_path: Path) -> None:
        tokenizer = self._tokenizer(tmp_path)
        assert " ab " not in tokenizer.get_vocab()

        assert stop_token_ids(tokenizer, [" ab "], self.FIELD) == (6,)


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("model", {"type": "OfTomorrow", "vocab": {}}),
        ("pre_tokenizer", {"type": "OfTomorrow"}),
        ("normalizer", {"type": "OfTomorrow"}),
        ("version", "99.0"),
    ],
)
def test_a_tokenizer_of_a_newer_library_is_no_crash(
    tmp_path: Path, part: str, content: Any
) -> None:
    """The library raises its bare Exception of it."""
    path = _saved(tmp_path, ["</s>", "<pad>"], eos_token="</s>") / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: content}))
    with pytest.raises(InputError) as caught:
        _load(tmp_path)
    for word in (f"{FIELD}.uri", str(tmp_path), "no tokenizer can be loaded", "newer library"):
        assert word in str(caught.value)
    assert f"transformers {transformers.__version__}" in str(caught.value)


def test_a_tokenizer_that_was_not_fetched_is_called_so(tmp_path: Path) -> None:
    path = _saved(tmp_path, ["</s>", "<pad>"], eos_token="</s>") / "tokenizer.json"
    path.write_bytes(POINTER + b"v1\noid sha256:4cac19622fc3ada9\nsize 12345\n")
    with pytest.raises(InputError, match=r"tokenizer\.json is a pointer of Git LFS.*git lfs pull"):
        _load(tmp_path)


@pytest.mark.parametrize("files", [(), ("tokenizer.json",)])
def test_code_of_a_tokenizer_is_never_run(
    tmp_path: Path, files: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    """Nor is anybody asked whether it may be, as transformers would do."""
    _saved(tmp_path, ["</s>", "<pad>"], eos_token="</s>")
    path = tmp_path / "tokenizer_config.json"
    code = {"tokenizer_class": "XTok", "auto_map": {"AutoTokenizer": ["tokenization_x.XTok", None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | code))
    (tmp_path / "tokenization_x.py").write_text("raise SystemExit('this code was run')\n")
    if "tokenizer.json" not in files:
        (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(InputError) as caught:
        _load(tmp_path)
    for word in (f"{FIELD}.uri", str(tmp_path), "code of its own", "never run"):
        assert word in str(caught.value)
    assert "trust_remote_code" not in str(caught.value)
    assert capfd.readouterr().out == ""
