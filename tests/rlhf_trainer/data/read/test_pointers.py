from pathlib import Path

import pytest

from rlhf_api.errors import InputError
from rlhf_api.v1alpha1 import Dataset
from rlhf_trainer.data.read.pointers import is_pointer
from rlhf_trainer.data.read.rows import read_rows

# As git-lfs/docs/spec.md shows one.
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 12345\n"
)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (POINTER, True),
        (POINTER.replace(b"v1", b"v2"), True),
        (b"", False),
        (b"version", False),
        (b'{"prompt": "version https://git-lfs.github.com/spec/v1"}\n', False),
    ],
)
def test_a_pointer_is_known_by_how_it_begins(
    tmp_path: Path, content: bytes, expected: bool
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert is_pointer(path) == expected


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_rows_that_were_not_fetched_are_called_so(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(POINTER)
    for uri in (f"file://{path}", f"file://{tmp_path}"):
        with pytest.raises(InputError) as caught:
            list(read_rows(Dataset(uri=uri), claims={}, field="spec.stages.sft.dataset"))
        for word in ("spec.stages.sft.dataset.uri", str(path), "Git LFS", "git lfs pull"):
            assert word in str(caught.value)
