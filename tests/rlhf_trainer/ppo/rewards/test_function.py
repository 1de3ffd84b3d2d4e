"""A user's function as a reward: what is imported, what may pass, what its author is told."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_api.errors import ConfigError, InputError, RLHFError
from rlhf_api.v1alpha1 import FunctionReward
from rlhf_trainer.errors import ServiceUnavailable
from rlhf_trainer.ppo.rewards.answers import Texts
from rlhf_trainer.ppo.rewards.function import Function

FIELD = "spec.stages.ppo.rewards[0].function"
TEXTS = Texts(["1+1=", "2+2="], ["2", "5"])

MODULE = """
import math
import sys

LIMIT = 3

def lengths(prompts, responses):
    return [len(prompt) + 0.5 * len(response) for prompt, response in zip(prompts, responses)]

def one_argument(prompts):
    return []

async def awaited(prompts, responses):
    return []

def gives(value):
    return lambda prompts, responses: value

short, text, none, word, missing, nan, infinite = map(
    gives, ([1.0], "ab", None, [1.0, "2"], [None, 1.0], [0.0, math.nan], [0.0, math.inf])
)

def truths(prompts, responses):
    return (prompt == "1+1=" for prompt in prompts)

def fails(prompts, responses):
    raise KeyError("2+2=")

def offline(prompts, responses):
    raise ConnectionError("refused")

def leaves(prompts, responses):
    sys.exit("no answers")

def lists(prompts, responses):
    assert type(prompts) is list and type(responses) is list
    prompts.clear()
    return [0, 1]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with modules; what was imported is forgotten after the test."""
    before, path = set(sys.modules), list(sys.path)
    (tmp_path / "scores_of_mine.py").write_text(MODULE)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def opened(folder: Path, name: str, uri: str | None = None) -> Function:
    spec = FunctionReward(name=name, uri=uri or f"file://{folder}")
    return Function.open(spec, {"code": str(folder)}, FIELD)


@pytest.mark.parametrize(
    ("name", "scores"), [("lengths", [4.5, 4.5]), ("truths", [1.0, 0.0]), ("lists", [0.0, 1.0])]
)
@pytest.mark.field("FunctionReward.name", instead="scores_of_mine:not_there")
def test_it_gives_a_number_a_row(folder: Path, name: str, scores: list[float]) -> None:
    found = opened(folder, f"scores_of_mine:{name}")(TEXTS)
    assert found == scores
    assert all(type(score) is float for score in found)
    # A function that changes its lists changes nobody else's.
    assert TEXTS.prompts == ["1+1=", "2+2="]


@pytest.mark.field("FunctionReward.uri")
def test_it_is_found_on_a_claim_and_among_installed_modules(folder: Path) -> None:
    assert opened(folder, "scores_of_mine:lengths", "pvc://code")(TEXTS) == [4.5, 4.5]
    assert (
        Function.open(FunctionReward(name="operator:eq"), {}, FIELD).function(["a"], ["a"]) is True
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("not_there:score", ["not_there", "ModuleNotFoundError", "correct the module"]),
        ("scores_of_mine:not_there", ["scores_of_mine.py", "no not_there", "define it"]),
        ("scores_of_mine:LIMIT", ["is int", "name a function"]),
        ("scores_of_mine:one_argument", ["(prompts, responses)", "two lists of strings"]),
        ("scores_of_mine:awaited", ["coroutine", "plain"]),
        ("broken:score", ["SyntaxError", "broken.py"]),
        ("raising:score", ["ZeroDivisionError", "raising.py:2"]),
        ("leaving:score", ["SystemExit: 3", "leaving.py:2"]),
    ],
)
def test_what_cannot_be_imported_is_named(folder: Path, name: str, words: list[str]) -> None:
    (folder / "broken.py").write_text("def score(:\n")
    (folder / "raising.py").write_text("\n1 / 0\n")
    (folder / "leaving.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(InputError) as caught:
        opened(folder, name)
    told = str(caught.value)
    assert [word for word in [f"{FIELD}.name: {name}", *words] if word not in told] == []


@pytest.mark.parametrize(
    ("uri", "error", "words"),
    [
        ("file:///not/there", InputError, ["/not/there is no folder", "name the folder"]),
        ("hf://org/code", ConfigError, ["hf://org/code", "file:// or pvc://"]),
        ("pvc://other", InputError, ["claim other is not mounted", "code"]),
    ],
)
def test_a_place_without_modules_is_named(
    folder: Path, uri: str, error: type[RLHFError], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        opened(folder, "scores_of_mine:lengths", uri)
    told = str(caught.value)
    assert [word for word in [f"{FIELD}.uri", *words] if word not in told] == []


def test_a_module_of_the_same_name_is_not_taken_for_it(folder: Path) -> None:
    (folder / "json.py").write_text("def dumps(prompts, responses): ...\n")
    with pytest.raises(InputError, match=r"json is imported already from .*; give the module a na"):
        opened(folder, "json:dumps")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("short", ["1 scores for 2 responses"]),
        ("text", ["'ab' and no list"]),
        ("none", ["None and no list"]),
        ("word", ["'2' for row 1", "prompt '2+2='", "response '5'"]),
        ("missing", ["None for row 0"]),
        ("nan", ["nan for row 1"]),
        ("infinite", ["inf for row 1"]),
    ],
)
def test_scores_that_are_none_are_named(folder: Path, name: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        opened(folder, f"scores_of_mine:{name}")(TEXTS)
    told = str(caught.value)
    named = [f"{FIELD}.name: scores_of_mine:{name}", "one finite number for each", *words]
    assert [word for word in named if word not in told] == []


def test_its_errors_are_told_with_their_place(folder: Path) -> None:
    line = MODULE.splitlines().index('    raise KeyError("2+2=")') + 1
    with pytest.raises(InputError, match=rf"raised KeyError: '2\+2=' \(.*mine.py:{line}\)"):
        opened(folder, "scores_of_mine:fails")(TEXTS)
    with pytest.raises(InputError, match=r"raised SystemExit: no answers \(.*mine.py:"):
        opened(folder, "scores_of_mine:leaves")(TEXTS)
    with pytest.raises(ServiceUnavailable, match="raised ConnectionError: refused"):
        opened(folder, "scores_of_mine:offline")(TEXTS)
