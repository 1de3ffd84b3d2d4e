"""The errors of the contract: who carries which exit code."""

import pytest

from rlhf_api import errors
from rlhf_api.names import USER_ERROR_CODES, ExitCode


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.RLHFError, ExitCode.CRASH),
        (errors.UsageError, ExitCode.USAGE),
        (errors.DataError, ExitCode.DATA),
        (errors.InputError, ExitCode.INPUT),
        (errors.ConfigError, ExitCode.CONFIG),
        (errors.ContractVersionError, ExitCode.CONFIG),
    ],
)
def test_exit_codes(error: type[errors.RLHFError], code: ExitCode) -> None:
    assert error.exit_code is code


@pytest.mark.parametrize("error", errors.UserError.__subclasses__())
def test_user_errors_are_never_restarted(error: type[errors.UserError]) -> None:
    assert error.exit_code in USER_ERROR_CODES
