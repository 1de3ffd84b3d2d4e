"""Tokenizers of subwords, trained in a moment: as families ship them, in little.

`import subwords` works in every test. `tiny.tokenizer` has a token a character and no boundary that
matters; these have the prefix spaces, merges and byte tokens of the real ones.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import CTRLTokenizer, PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|end|>", "[INST]", "[/INST]"]
TEXTS = [
    "the cat sat on the mat and the hat",
    "user: hello there  assistant: hello world, how are you?",
    "12345 plus 678 is 13023\nand that is that\n\n",
    "好坏好坏 好吗 非常好 é è ê ééé",
] * 3

CHATML = (
    "{% for m in messages %}<|end|>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|end|>assistant\n{% endif %}"
)
"""Each turn ends by EOS and a line feed, as ChatML's do."""
LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'] | trim + ' ' + eos_token }}"
    "{% else %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}{% endif %}{% endfor %}"
)
"""White space stands around a response, and the generation prompt has none."""
WORDS = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""The generation prompt ends by a space, which belongs to the response's first word."""


def metaspace(scheme: str = "first") -> PreTrainedTokenizerFast:
    """SentencePiece's BPE; `scheme` says which stretches of text get a space in front."""
    return _finished(_metaspace(scheme))


def legacy_llama() -> PreTrainedTokenizerFast:
    """As Llama 2's were converted: the normalizer puts a space before each stretch of text."""
    return _finished(_legacy())


def unigram() -> PreTrainedTokenizerFast:
    """SentencePiece's other model, as T5 and XLM-R have it."""
    return _finished(_unigram())


def byte_level(*, add_prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """Bytes, as in GPT-2 and Llama 3, whose offsets leave white space out."""
    return _finished(_byte_level(add_prefix_space))


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "Metaspace": metaspace,
    "Metaspace, always": lambda: metaspace("always"),
    "Metaspace, never": lambda: metaspace("never"),
    "Llama 2, legacy": legacy_llama,
    "Unigram": unigram,
    "byte-level": byte_level,
    "byte-level, prefix": lambda: byte_level(add_prefix_space=True),
}


def with_template(
    tokenizer: PreTrainedTokenizerFast, template: str | None
) -> PreTrainedTokenizerFast:
    """The tokenizer with a chat template."""
    tokenizer.chat_template = template
    return tokenizer


def without_offsets(folder: Path) -> CTRLTokenizer:
    """One of those without a backend that tells offsets: letters a and b, @@ inside a word."""
    tokens = ["<unk>", "a", "b", "a@@", "b@@", "</s>", "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({t: index for index, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    return CTRLTokenizer(*files, unk_token="<unk>", eos_token="</s>", pad_token="<pad>")


def straddling_bytes() -> PreTrainedTokenizerFast:
    """Bytes of which the last of one é and the first of the next are one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL, *alphabet, "©Ã"]
    tokenizer = Tokenizer(
        models.BPE({token: index for index, token in enumerate(tokens)}, [("©", "Ã")])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return _finished(tokenizer.to_str())


def bare_bytes(*, fallback: bool = False, **named: str) -> PreTrainedTokenizerFast:
    """A token for each byte and one special token, <e>, as GPT-2 has but one; or as SentencePiece
    spells bytes."""
    bytes_of = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<e>", *(bytes_of if fallback else sorted(pre_tokenizers.ByteLevel.alphabet()))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=fallback))
    if not fallback:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteFallback() if fallback else decoders.ByteLevel()
    tokenizer.add_special_tokens(["<e>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


@cache
def _metaspace(scheme: str) -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return _trained(tokenizer, trainers.BpeTrainer(vocab_size=600, special_tokens=_bytes()))


@cache
def _legacy() -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Replace("▁", " ")
    return _trained(tokenizer, trainers.BpeTrainer(vocab_size=600, special_tokens=_bytes()))


@cache
def _unigram() -> str:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    return _trained(tokenizer, trainer)


@cache
def _byte_level(add_prefix_space: bool) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return _trained(tokenizer, trainer)


def _trained(tokenizer: Tokenizer, trainer: trainers.Trainer) -> str:
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    return str(tokenizer.to_str())


def _bytes() -> list[str]:
    """The tokens of bytes that stand for characters without a token."""
    return [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]


def _finished(definition: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(definition),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )
