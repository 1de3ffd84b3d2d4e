import os
from pathlib import Path

import pytest

from rlhf_api.errors import ConfigError, InputError
from rlhf_trainer.data.read.uris import Hub, locate

FIELD = "spec.stages.sft.dataset.uri"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("hf://org/name", Hub("org/name")),
        ("hf://org/name@v1.0", Hub("org/name", "v1.0")),
        ("hf://name", Hub("name")),
        ("file:///data/x.jsonl", Path("/data/x.jsonl")),
        ("file://data/x.jsonl", Path(os.getcwd()) / "data/x.jsonl"),
        ("pvc://claim/a/b.jsonl", Path("/mnt/claim/a/b.jsonl")),
        ("pvc://claim", Path("/mnt/claim")),
        ("pvc://claim//a", Path("/mnt/claim/a")),
    ],
)
def test_a_uri_becomes_a_place(uri: str, expected: Path | Hub) -> None:
    assert locate(uri, {"claim": "/mnt/claim"}, FIELD) == expected


@pytest.mark.parametrize(
    ("uri", "error", "words"),
    [
        ("pvc://other/x", InputError, ["other", "mounted: claim", "--mount other=path"]),
        ("pvc://claim/../x", InputError, ["claim", "without .."]),
        ("scratch://llama", ConfigError, ["scratch://", "use hf://, file:// or pvc://"]),
    ],
)
def test_what_cannot_be_read_is_named(uri: str, error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        locate(uri, {"claim": "/mnt/claim"}, FIELD)
    for word in [FIELD, uri, *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(("hub", "text"), [(Hub("a/b"), "hf://a/b"), (Hub("a", "c"), "hf://a@c")])
def test_a_hub_repository_prints_as_its_uri(hub: Hub, text: str) -> None:
    assert str(hub) == text
