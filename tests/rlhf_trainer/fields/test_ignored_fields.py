"""The plugin that runs tests without the fields that they declare."""

import pytest

pytest_plugins = ["pytester"]

TESTS = """
from types import ModuleType

import pytest

from rlhf_api.v1alpha1 import Dataset

trainer, test = ModuleType("rlhf_trainer.rows"), ModuleType("test_rows")
for module in (trainer, test):
    exec("def rows(dataset): return dataset.max_rows", vars(module))
DATASET = Dataset(uri="hf://a/b", max_rows=3)
"""


@pytest.mark.parametrize(
    ("mark", "seen", "outcomes"),
    [
        pytest.param("", "trainer.rows(DATASET) == 3", {"passed": 1}, id="no field"),
        pytest.param(
            '@pytest.mark.field("Dataset.max_rows")\n',
            "trainer.rows(DATASET) == 3",
            {"passed": 1, "xfailed": 1},
            id="seen",
        ),
        pytest.param(
            '@pytest.mark.field("Dataset.max_rows", instead=3)\n',
            "trainer.rows(DATASET) == 3",
            {"passed": 1, "failed": 1},
            id="the same instead",
        ),
        pytest.param(
            '@pytest.mark.field("Dataset.max_rows", "Dataset.split")\n',
            "trainer.rows(DATASET) == 3",
            {"passed": 1, "xfailed": 1, "failed": 1},
            id="another field",
        ),
        pytest.param(
            '@pytest.mark.field("Dataset.max_rows")\n',
            "test.rows(DATASET) == 3",
            {"passed": 1, "failed": 1},
            id="read by the test alone",
        ),
    ],
)
def test_a_test_is_run_without_what_it_declares(
    pytester: pytest.Pytester, mark: str, seen: str, outcomes: dict[str, int]
) -> None:
    pytester.makepyfile(f"{TESTS}\n\n{mark}def test_rows():\n    assert {seen}\n")
    pytester.runpytest_inprocess("-p", "ignored_fields").assert_outcomes(**outcomes)


def test_a_parameter_declares_for_itself(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        f"{TESTS}\n\n"
        'FIELD = pytest.mark.field("Dataset.max_rows")\n\n'
        '@pytest.mark.parametrize("rows", [3, pytest.param(None, marks=()), '
        "pytest.param(2, marks=FIELD)])\n"
        "def test_rows(rows):\n"
        "    dataset = DATASET.model_copy(update={'max_rows': rows})\n"
        "    assert trainer.rows(dataset) == rows\n"
    )
    result = pytester.runpytest_inprocess("-p", "ignored_fields")
    result.assert_outcomes(passed=3, xfailed=1)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Dataset.rows", "*Dataset.rows*there is no such field; correct the mark*"),
        ("Dataset.uri", "*Dataset.uri*has no default; give `instead`*"),
    ],
)
def test_a_mark_that_cannot_be_used_is_named(
    pytester: pytest.Pytester, name: str, told: str
) -> None:
    pytester.makepyfile(f"{TESTS}\n\n@pytest.mark.field({name!r})\ndef test_rows():\n    pass\n")
    result = pytester.runpytest_inprocess("-p", "ignored_fields")
    result.stdout.fnmatch_lines([told])
    result.assert_outcomes(errors=1)
