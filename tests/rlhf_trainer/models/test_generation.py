"""Where answers end and how they are sampled, as repositories say it."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers import GenerationConfig, LlamaConfig, PretrainedConfig

from rlhf_api.errors import InputError
from rlhf_trainer.models.generation import GENERATION_FILE, Generation, read_generation
from rlhf_trainer.models.load import save_model
from rlhf_trainer.run.artifact import ModelLocation

FIELD = "spec.stages.sft.model"
CHAT = "{% for m in messages %}{{ m.content }}!{% endfor %}"
END = 21
"""Of "!", the last of tiny's tokens."""


def read(
    folder: Path,
    document: object,
    *,
    template: str | None = None,
    config: PretrainedConfig | None = None,
) -> Generation:
    """What is read of a folder whose generation_config.json is `document`."""
    if document is not None:
        text = document if isinstance(document, str) else json.dumps(document)
        (folder / GENERATION_FILE).write_text(text)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    location = ModelLocation(str(folder))
    return read_generation(location, config or LlamaConfig(), tokenizer, FIELD)


@pytest.mark.parametrize(
    ("document", "template", "stops"),
    [
        pytest.param(None, None, (1,), id="EOS"),
        pytest.param({"eos_token_id": 1}, None, (1,), id="EOS twice"),
        pytest.param({"eos_token_id": [1, 7, 9]}, None, (1, 7, 9), id="a list"),
        pytest.param({"eos_token_id": 7}, CHAT, (END, 1, 7), id="all three differ"),
        pytest.param({"eos_token_id": [7, END]}, CHAT, (END, 1, 7), id="the list knows the end"),
        pytest.param({"eos_token_id": None}, CHAT, (END, 1), id="none in the file"),
        pytest.param({"eos_token_id": [5, 50_256]}, None, (1, 5), id="no token of this vocabulary"),
    ],
)
def test_all_that_ends_an_answer_stops_it(
    tmp_path: Path, document: object, template: str | None, stops: tuple[int, ...]
) -> None:
    found = read(tmp_path, document, template=template)

    assert found.stop_ids == stops
    assert ("eos_token_id 50256 is no token" in found.described(tiny.tokenizer())) == (
        50_256 in found.unknown_ids
    )
    assert found.end.token_id == stops[0]


def test_a_list_in_an_older_repository_s_configuration_counts(tmp_path: Path) -> None:
    assert read(tmp_path, None, config=LlamaConfig(eos_token_id=[1, 8])).stop_ids == (1, 8)
    # A single id is the architecture's default as often as not.
    assert read(tmp_path, None, config=LlamaConfig(eos_token_id=2)).stop_ids == (1,)
    assert read(tmp_path, {}, config=LlamaConfig(eos_token_id=[1, 8])).stop_ids == (1,)


def test_what_was_found_is_told_in_words(tmp_path: Path) -> None:
    alone = read(tmp_path, None)
    assert alone.described(tiny.tokenizer()) == "answers end with '</s>', by EOS"
    found = read(tmp_path, {"eos_token_id": 3}, template=CHAT)
    assert found.described(tiny.tokenizer()) == (
        "answers end with '!', by the chat template; sampling stops at '</s>', 'a' as well"
    )


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("{", "Expecting"),
        ([1], "list"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>', and no token id or list of them"),
        ({"eos_token_id": [True]}, "no token id or list"),
        ({"cache_implementation": "shelf"}, "shelf"),
        ({"temperature": -3.0}, "temperature is -3.0, and not a number above 0"),
        ({"do_sample": True, "temperature": 0}, "temperature is 0, and not a number above 0"),
        ({"temperature": "1"}, "temperature is '1', and not a number above 0"),
        ('{"temperature": NaN}', "temperature is nan, and not a number above 0"),
        ({"top_p": 7}, "top_p is 7, and not a number from 0 to 1"),
        ({"top_k": -1}, "top_k is -1, and not a whole number from 0 on"),
        ({"repetition_penalty": -1.0}, "repetition_penalty is -1.0, and not a number above 0"),
        ({"max_length": "x"}, "max_length is 'x', and not a whole number from 1 on"),
        ({"num_beams": 0}, "num_beams is 0, and not a whole number from 1 on"),
        ({"do_sample": "yes"}, "do_sample is 'yes', and not true or false"),
        ({"bad_words_ids": "x"}, "bad_words_ids is 'x', and not a list of lists of token ids"),
        ({"suppress_tokens": [True]}, "suppress_tokens is [True], and not a list of token ids"),
        ({"save_pretrained": "x"}, "save_pretrained is no value that it can have"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, document: object, told: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, document)

    for words in [f"{FIELD}.uri: {tmp_path / GENERATION_FILE}: ", told, "correct it, or remove"]:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("own", "kept"),
    [
        pytest.param({}, {}, id="nothing said"),
        pytest.param({"max_length": 4096}, {"max_length": 4096}, id="greedy by default"),
        pytest.param(
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.05},
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.05},
            id="Llama 3, Qwen",
        ),
        pytest.param({"do_sample": False}, {"do_sample": False}, id="greedy"),
        pytest.param(
            {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.05},
            {"do_sample": False, "repetition_penalty": 1.05},
            id="greedy, with values of sampling",
        ),
        pytest.param(
            {"do_sample": False, "temperature": 0.0, "max_length": 4096},
            {"do_sample": False, "max_length": 4096},
            id="greedy, at temperature 0",
        ),
        pytest.param({"temperature": None}, {}, id="null"),
        pytest.param(
            {"temperature": 0.9, "top_p": 0.6, "max_length": 4096},
            {"do_sample": True, "temperature": 0.9, "top_p": 0.6, "max_length": 4096},
            id="Llama 2, without do_sample",
        ),
    ],
)
def test_sampling_values_of_the_base_come_along(
    tmp_path: Path, own: dict[str, Any], kept: dict[str, Any]
) -> None:
    ids = {"bos_token_id": 5, "pad_token_id": 6, "eos_token_id": [1, 7, 9]}
    found = read(tmp_path, own | ids | {"transformers_version": "4.1", "_from_model_config": True})
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    folder = tmp_path / "artifact"

    save_model(
        tiny.causal_model(words), tiny.tokenizer_of(words), folder, found.stop_ids, found.sampling
    )

    written = json.loads((folder / GENERATION_FILE).read_text())
    assert written.pop("transformers_version") != "4.1"
    assert written == kept | {"eos_token_id": [1, 7, 9], "pad_token_id": 0}
    GenerationConfig.from_pretrained(folder).validate(strict=True)
