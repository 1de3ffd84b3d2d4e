"""What people write in place of a URI or a field's name, and what they are told."""

from typing import Any

import pytest

from rlhf_api.errors import ConfigError
from rlhf_api.v1alpha1 import RLHFJob

SFT, PPO = "spec.stages.sft", "spec.stages.ppo"


def told(document: Any) -> str:
    """The only mistake of the document."""
    with pytest.raises(ConfigError) as caught:
        RLHFJob.from_document(document)
    return str(caught.value).removeprefix("RLHFJob: ")


@pytest.mark.parametrize("uri", ["gpt2", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B@main"])
def test_a_name_of_the_hub_may_be_a_repository_or_a_path(make_document: Any, uri: str) -> None:
    assert told(make_document({f"{SFT}.model.uri": uri})) == (
        f'{SFT}.model.uri: is "{uri}", which names no scheme; for a path write file://{uri}, for a '
        f"repository of the Hugging Face hub hf://{uri}"
    )


@pytest.mark.parametrize("uri", ["./m", "/models/llama", "../m", "~/m", "rows.jsonl", "a b", ""])
def test_what_can_be_no_repository_is_taken_for_a_path_alone(make_document: Any, uri: str) -> None:
    assert told(make_document({f"{SFT}.dataset.uri": uri})) == (
        f'{SFT}.dataset.uri: is "{uri}", which names no scheme; for a path write file://{uri}'
    )


@pytest.mark.parametrize(
    ("page", "uri"),
    [
        ("https://huggingface.co/gpt2", "hf://gpt2"),
        ("https://huggingface.co/Qwen/Qwen3-0.6B/", "hf://Qwen/Qwen3-0.6B"),
        ("https://huggingface.co/datasets/miracl/miracl", "hf://miracl/miracl"),
    ],
)
def test_a_page_of_the_hub_is_told_its_uri(make_document: Any, page: str, uri: str) -> None:
    assert told(make_document({f"{SFT}.model.uri": page})) == (
        f'{SFT}.model.uri: is "{page}", a page of the Hugging Face hub; write {uri}'
    )


@pytest.mark.parametrize(
    ("given", "uri"),
    [
        ("file:/models/x", "file:///models/x"),
        ("file:models/x", "file://models/x"),
        ("File:///models/x", "file:///models/x"),
        ("hf:gpt2", "hf://gpt2"),
        ("hf:/org/name", "hf://org/name"),
        ("HF://org/name", "hf://org/name"),
        ("pvc:claim/x", "pvc://claim/x"),
    ],
)
def test_a_scheme_in_another_spelling_is_told_the_right_one(
    make_document: Any, given: str, uri: str
) -> None:
    assert told(make_document({f"{SFT}.model.uri": given})) == (
        f'{SFT}.model.uri: is "{given}", which names its scheme in another way; write {uri}'
    )
    RLHFJob.from_document(make_document({f"{SFT}.model.uri": uri}))


@pytest.mark.parametrize(
    ("field", "uri"),
    [
        ("model", "hf://gpt2/tree/main"),
        ("dataset", "hf://datasets/a/b"),
        ("dataset", "hf://datasets/a"),
        ("model", "hf://org/name/model.safetensors"),
    ],
)
def test_a_page_behind_hf_is_told_the_form(make_document: Any, field: str, uri: str) -> None:
    line = told(make_document({f"{SFT}.{field}.uri": uri}))

    for words in [f"{SFT}.{field}: uri hf:// must be hf://org/name", "@revision", uri]:
        assert words in line


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({f"{PPO}.top_k": 5}, f"{PPO}.top_k: is unknown (value 5); did you mean topK?"),
        ({f"{SFT}.max_steps": 1}, f"{SFT}.max_steps: is unknown (value 1); did you mean maxSteps?"),
        (
            {"spec.run_policy": {"max_restarts": 1}},
            'spec.run_policy: is unknown (value {"max_restarts": 1}); did you mean runPolicy?',
        ),
        (
            {f"{SFT}.dataset.columns": {"positive_passages": "p"}},
            f'{SFT}.dataset.columns.positive_passages: is unknown (value "p"); did you mean '
            "positivePassages?",
        ),
        ({"api_version": "rlhf.dev/v1alpha1"}, "api_version: is unknown"),
    ],
)
def test_python_s_spelling_is_no_name_of_a_field(
    make_document: Any, changes: dict[str, Any], line: str
) -> None:
    """The API server prunes it, so that a job would run there without it."""
    assert told(make_document(changes)).startswith(line)
