"""Files as people have them: every form that must work, and every one that must say why not."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rlhf_api.errors import DataError, InputError, RLHFError
from rlhf_api.v1alpha1 import Dataset
from rlhf_trainer.data.read.rows import Row, clipped, read_rows

FIELD = "spec.stages.sft.dataset"


def _read(path: Path, **spec: Any) -> list[Row]:
    dataset = Dataset(uri=f"file://{path}", **spec)
    return list(read_rows(dataset, claims={}, field=FIELD))


def _write(folder: Path, raw: bytes, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param(b'{"a": 1}\n{"a": 2}\n', [(1, 1), (2, 2)], id="plain"),
        pytest.param(b'{"a": 1}\n{"a": 2}', [(1, 1), (2, 2)], id="no last line feed"),
        pytest.param(b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n', [(1, 1), (2, 2)], id="BOM"),
        pytest.param(b'{"a": 1}\r\n{"a": 2}\r\n', [(1, 1), (2, 2)], id="CRLF"),
        pytest.param(b'{"a": 1}\n\n \t\r\n{"a": 2}\n\n', [(1, 1), (4, 2)], id="blank lines"),
        pytest.param('{"a": "\u597d\u2028\x85"}\n'.encode(), [(1, "好\u2028\x85")], id="non-ASCII"),
        pytest.param(b"\xef\xbb\xbf\n", [], id="nothing"),
    ],
)
def test_lines_are_rows(tmp_path: Path, raw: bytes, expected: list[tuple[int, Any]]) -> None:
    path = _write(tmp_path, raw)

    rows = _read(path)

    assert [(row.source.line, row.values["a"]) for row in rows] == expected
    assert all(str(row.source) == f"{path}: line {row.source.line}" for row in rows)


def test_a_row_of_a_megabyte_is_a_row(tmp_path: Path) -> None:
    text = "好" * 400_000
    path = _write(tmp_path, json.dumps({"a": text}, ensure_ascii=False).encode() + b"\n{}\n")

    assert [row.values for row in _read(path)] == [{"a": text}, {}]


@pytest.mark.parametrize(
    ("raw", "line", "words"),
    [
        pytest.param(
            b'{"a": 1}\n\n{"a": \xff}\n', 3, ["not UTF-8", "\\xff", "save"], id="not UTF-8"
        ),
        pytest.param('{"a": 1}\n'.encode("utf-16"), 1, ["not UTF-8", "save"], id="UTF-16"),
        pytest.param(
            b'{"a": 1}\n{"a": 1,}\n', 2, ["not JSON", '\\"a\\": 1,', "one object"], id="comma"
        ),
        pytest.param(
            b'{"a": 1\n', 1, ["not JSON (Expecting", "at column 8", "one object a line"], id="cut"
        ),
        pytest.param(
            b'{"a": "1\n', 1, ["not JSON (Unterminated string starting at column 7)"], id="open"
        ),
        pytest.param(b"[" * 100_000, 1, ["not JSON", "[[[", "..."], id="deep"),
        pytest.param(b'{"a": ' + b"9" * 5000 + b"}", 1, ["not JSON", "9999"], id="long number"),
        pytest.param(
            b"[1, 2]\n", 1, ["not a JSON object", "[1, 2]", "write one object"], id="list"
        ),
        pytest.param(b"{}\nnull\n", 2, ["not a JSON object", "null"], id="null"),
        pytest.param(b'"\\ud800"\n', 1, ["not a JSON object", "ud800"], id="surrogate"),
    ],
)
def test_a_line_that_is_no_row_is_named(
    tmp_path: Path, raw: bytes, line: int, words: list[str]
) -> None:
    path = _write(tmp_path, raw)

    with pytest.raises(DataError) as caught:
        _read(path)

    for word in [f"{path}: line {line}: ", *words]:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 600
    str(caught.value).encode()


def test_json_is_a_list_or_lines(tmp_path: Path) -> None:
    as_list = _write(tmp_path, b'\xef\xbb\xbf\n[{"a": 1},\n{"a": 2}]', "list.json")
    as_lines = _write(tmp_path, b'{"a": 1}\n{"a": 2}\n', "lines.json")

    assert [row.values["a"] for row in _read(as_list)] == [1, 2]
    assert [row.values["a"] for row in _read(as_lines)] == [1, 2]
    assert str(_read(as_list)[1].source) == f"{as_list}: row 2"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'[{"a": 1},\n{"a": }]', ["line 2", "not JSON"]),
        (b'[{"a": 1},\n{"a": "\xff"}]', ["line 2", "not UTF-8"]),
        (b'[{"a": 1}, 3]', ["row 2", "not a JSON object: 3"]),
    ],
)
def test_a_list_that_is_no_dataset_is_named(tmp_path: Path, raw: bytes, words: list[str]) -> None:
    path = _write(tmp_path, raw, "rows.json")

    with pytest.raises(DataError) as caught:
        _read(path)

    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_parquet_rows_are_numbered(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "list": [{"text": "好"}]} for i in range(3000)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")

    found = _read(tmp_path / "x.parquet")

    assert [row.values for row in found] == rows
    assert str(found[2500].source) == f"{tmp_path / 'x.parquet'}: row 2501"


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path, b"PAR1 and nothing else", "x.parquet")

    with pytest.raises(DataError, match=r"x\.parquet: cannot be read as Parquet .*write it anew"):
        _read(path)


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    _write(tmp_path, b'{"a": 2}\n', "b.jsonl")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"a": 1}]), tmp_path / "a.parquet")
    _write(tmp_path, b"not data", "README.md")
    _write(tmp_path, b"not data", "._b.jsonl")
    (tmp_path / "c.jsonl").mkdir()

    assert [row.values["a"] for row in _read(tmp_path)] == [1, 2]


@pytest.mark.field("Dataset.max_rows")
def test_max_rows_are_the_first_ones_and_the_rest_is_not_read(tmp_path: Path) -> None:
    path = _write(tmp_path, b'{"a": 1}\n{"a": 2}\nbroken\n')

    assert [row.values["a"] for row in _read(path, max_rows=2)] == [1, 2]


def test_a_claim_is_where_it_is_mounted(tmp_path: Path) -> None:
    _write(tmp_path, b'{"a": 1}\n')
    dataset = Dataset(uri="pvc://claim/rows.jsonl")

    rows = list(read_rows(dataset, claims={"claim": str(tmp_path)}, field=FIELD))

    assert [row.values for row in rows] == [{"a": 1}]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.jsonl", ["there is no file", "correct the path"]),
        ("empty-folder", ["holds no file that ends by .jsonl, .json, .parquet", "put the data"]),
        ("rows.csv", ["rows.csv does not end by one of", "convert"]),
        ("saved", ["cannot be loaded", "save the dataset anew"]),
        ("saved-as-list", ["cannot be loaded", "save the dataset anew"]),
        ("saved-with-number", ["cannot be loaded", "save the dataset anew"]),
        ("saved-without-info", ["cannot be loaded", "save the dataset anew"]),
    ],
)
def test_a_place_without_rows_is_named(tmp_path: Path, name: str, words: list[str]) -> None:
    (tmp_path / "empty-folder").mkdir()
    _write(tmp_path, b"a,b\n", "rows.csv")
    (tmp_path / "saved").mkdir()
    _write(tmp_path / "saved", b"{}", "dataset_dict.json")
    for kind, text in {"as-list": b"[]", "with-number": b'{"splits": 5}'}.items():
        (tmp_path / f"saved-{kind}").mkdir()
        _write(tmp_path / f"saved-{kind}", text, "dataset_dict.json")
    (tmp_path / "saved-without-info").mkdir()
    for file in ("dataset_info.json", "state.json"):
        _write(tmp_path / "saved-without-info", b"[]", file)

    with pytest.raises(InputError) as caught:
        _read(tmp_path / name)

    for word in [f"{FIELD}.uri: ", name, *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["data/train-0.parquet", "data/test-0.parquet", "dataset_infos.json"], "data"),
        (["default/train/0000.parquet"], "default/train"),
        (["zh/train.jsonl", "en/train.jsonl", ".cache/a.json"], "en, zh"),
    ],
)
def test_subfolders_with_data_are_named(tmp_path: Path, files: list[str], named: str) -> None:
    """Clones of the hub's repositories."""
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        _write((tmp_path / file).parent, b"{}", Path(file).name)

    with pytest.raises(InputError) as caught:
        _read(tmp_path)

    assert f"its subfolders {named} do; name one of them in uri" in str(caught.value)


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    rows = [{"prompt": "好", "response": str(i)} for i in range(3)]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "one"))

    found = _read(tmp_path / "one")

    assert [row.values for row in found] == rows
    assert str(found[2].source) == f"{tmp_path / 'one'}: row 3"


def test_a_saved_dataset_has_its_own_split_only(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}]
    one = datasets.Dataset.from_list(rows, split=datasets.Split.VALIDATION)
    one.save_to_disk(str(tmp_path / "one"))

    assert [row.values for row in _read(tmp_path / "one", split="validation")] == rows
    with pytest.raises(InputError, match=rf"^{FIELD}\.split: test: .* only one split; leave"):
        _read(tmp_path / "one", split="test")


@pytest.mark.field("Dataset.split")
@pytest.mark.field("Dataset.uri", instead="file:///nowhere")
def test_a_folder_is_read_by_its_split(tmp_path: Path) -> None:
    _write(tmp_path, b'{"a": 1}\n', "train.jsonl")
    _write(tmp_path, b'{"a": 2}\n', "test.jsonl")

    assert [row.values["a"] for row in _read(tmp_path)] == [1]
    assert [row.values["a"] for row in _read(tmp_path, split="test")] == [2]
    with pytest.raises(InputError, match=r"split: dev: .* of the splits test, train; name one"):
        _read(tmp_path, split="dev")


@pytest.mark.field("Dataset.subset")
def test_a_file_has_one_split_and_no_subset(tmp_path: Path) -> None:
    path = _write(tmp_path, b'{"a": 1}\n')

    for spec, words in (
        ({"split": "test"}, [f"{FIELD}.split: test", "only one split", "leave split out"]),
        ({"subset": "zh"}, [f"{FIELD}.subset: zh", "no subsets", "leave subset out"]),
    ):
        with pytest.raises(InputError) as caught:
            _read(path, **spec)
        for word in [str(path), *words]:
            assert word in str(caught.value)


def test_the_split_of_saved_datasets_is_the_spec_s(tmp_path: Path) -> None:
    parts = {name: datasets.Dataset.from_list([{"a": name}]) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "two"))

    assert [row.values for row in _read(tmp_path / "two", split="test")] == [{"a": "test"}]
    with pytest.raises(InputError) as caught:
        _read(tmp_path / "two", split="dev")
    for word in [f"{FIELD}.split: dev", "test, train", "name one of them"]:
        assert word in str(caught.value)


def test_a_value_in_a_message_is_short_and_printable() -> None:
    assert clipped("好") == '"好"'
    assert len(clipped("x" * 1_000_000)) == 120
    assert clipped("x" * 1_000_000).endswith("...")
    clipped("\ud800").encode()


def test_every_error_is_one_that_the_launcher_translates() -> None:
    assert issubclass(DataError, RLHFError)
    assert (DataError.exit_code, InputError.exit_code) == (65, 66)
