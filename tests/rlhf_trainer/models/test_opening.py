"""What fails while a person's files are opened: an input that cannot be used, never a crash."""

import errno
import pickle

import pytest

from rlhf_api.errors import ConfigError, InputError, RLHFError
from rlhf_api.names import ExitCode
from rlhf_trainer.errors import failure_of
from rlhf_trainer.models.opening import opening


def raised(error: Exception) -> Exception:
    try:
        with opening("spec.x: y cannot be read", "correct it"):
            raise error
    except (RLHFError, OSError, MemoryError) as found:
        return found


@pytest.mark.parametrize(
    "error", [Exception("no such kind"), KeyError("model"), ValueError("no\nsuch kind"), OSError()]
)
def test_what_nobody_foresaw_is_an_input_that_cannot_be_used(error: Exception) -> None:
    found = raised(error)
    assert isinstance(found, InputError)
    assert str(found).startswith("spec.x: y cannot be read: ")
    assert str(found).endswith("; correct it")
    assert "\n" not in str(found)
    assert found.__cause__ is error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("spec.x: z"), ExitCode.CONFIG),
        (OSError(errno.ENOSPC, "No space left on device"), ExitCode.IO),
        (PermissionError(errno.EACCES, "Permission denied"), ExitCode.NO_PERMISSION),
        (ConnectionResetError("reset"), ExitCode.UNAVAILABLE),
        (MemoryError(), ExitCode.CRASH),
    ],
)
def test_what_has_a_word_of_its_own_keeps_it(error: Exception, code: int) -> None:
    assert raised(error) is error
    assert failure_of(error).exit_code == code


def test_a_list_of_all_that_a_library_knows_is_cut() -> None:
    assert len(str(raised(ValueError("GPT2Config, " * 1000)))) < 400


def test_colours_and_bare_keys_are_no_reason() -> None:
    assert ": do this; correct" in str(raised(ValueError("\x1b[1mdo this\x1b[0m")))
    assert ": KeyError: 'of-tomorrow'; correct" in str(raised(KeyError("of-tomorrow")))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "Weights only load failed. Re-running `torch.load` ... Unsupported global: GLOBAL "
            "os.system was not an allowed global by default.",
            "it calls os.system",
        ),
        ("pickle data was truncated", "it holds more than tensors, or is damaged"),
    ],
)
def test_nobody_is_advised_to_run_a_pickle(text: str, told: str) -> None:
    found = str(raised(pickle.UnpicklingError(text)))
    assert found == f"spec.x: y cannot be read: {told}; nothing of it was run; correct it"
