"""Columns of tables that Python has no value for: no concern unless they are read."""

from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rlhf_api.errors import DataError
from rlhf_api.v1alpha1 import Columns, Dataset
from rlhf_trainer.data.parse.formats import sft_rows
from rlhf_trainer.data.read.rows import Row, read_rows

FIELD = "spec.stages.sft.dataset"
ROWS = 1500
LATE = pyarrow.array([0] * (ROWS - 1) + [400_000_000], pyarrow.int32()).cast(pyarrow.date32())
"""One date behind the year 9999, in the second batch."""
NOWHERE = pyarrow.array([0] * ROWS, pyarrow.timestamp("us", tz="Nowhere/Atlantis"))


def _table(column: Any) -> Any:
    asked = [f"p{row}" for row in range(ROWS)]
    return pyarrow.table({"prompt": asked, "response": ["r"] * ROWS, "made": column})


def _write(folder: Path, column: Any) -> Path:
    pyarrow.parquet.write_table(_table(column), folder / "rows.parquet")
    return folder / "rows.parquet"


def _save(folder: Path, column: Any) -> Path:
    datasets.Dataset(_table(column)).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def _read(path: Path, **columns: str) -> tuple[list[Row], Dataset]:
    dataset = Dataset(uri=f"file://{path}", columns=Columns(**columns))
    return list(read_rows(dataset, claims={}, field=FIELD)), dataset


@pytest.mark.parametrize("column", [LATE, NOWHERE], ids=["late", "nowhere"])
@pytest.mark.parametrize("write", [_write, _save])
def test_a_column_that_nobody_reads_is_no_concern(tmp_path: Path, write: Any, column: Any) -> None:
    rows, dataset = _read(write(tmp_path, column))

    found = sft_rows(rows, dataset, FIELD)

    assert [row.prompt for row in found] == [f"p{row}" for row in range(ROWS)]
    assert str(found[-1].source).endswith(f": row {ROWS}")


@pytest.mark.parametrize(("column", "row"), [(LATE, ROWS), (NOWHERE, 1)], ids=["late", "nowhere"])
@pytest.mark.parametrize("write", [_write, _save])
def test_a_column_that_is_read_is_named_with_its_row(
    tmp_path: Path, write: Any, column: Any, row: int
) -> None:
    path = write(tmp_path, column)
    rows, _ = _read(path)

    with pytest.raises(DataError) as caught:
        [each.values["made"] for each in rows]

    for word in [f"{path}: row {row}: made: cannot be read: ", "write the column anew"]:
        assert word in str(caught.value)


def test_the_remedy_for_turns_does_not_need_every_column(tmp_path: Path) -> None:
    rows, dataset = _read(_write(tmp_path, NOWHERE), prompt="absent")

    with pytest.raises(DataError, match=r"absent: is missing; the row has .*\"made\""):
        sft_rows(rows, dataset, FIELD)


def test_two_columns_of_one_name_are_named(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["p"])] * 3, ["prompt", "prompt", "response"])
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    rows, dataset = _read(tmp_path / "x.parquet")

    with pytest.raises(DataError, match=r"x\.parquet: row 1: prompt: cannot be read: .*2 times"):
        sft_rows(rows, dataset, FIELD)


def test_a_row_is_a_mapping_of_its_columns(tmp_path: Path) -> None:
    (row, *_), _ = _read(_write(tmp_path, pyarrow.array(["m"] * ROWS)))

    assert row.values == {"prompt": "p0", "response": "r", "made": "m"}
    assert (len(row.values), row.values.get("other"), "made" in row.values) == (3, None, True)
