"""The errors of the contract.

RLHFError                       everything that we raise on purpose; carries `exit_code`
└── UserError                   needs a person; the message names object, field, value and remedy
    ├── UsageError        64    the command line
    ├── DataError         65    a dataset's content
    ├── InputError        66    a model, artifact or dataset missing, or not what was promised
    └── ConfigError       78    an RLHFJob or StageConfig that breaks the contract
        └── ContractVersionError    written by another release

Other packages add branches below `RLHFError` or `UserError`; only a process's edge translates them.
"""

from typing import ClassVar

from rlhf_api.names import CONTRACT_VERSION, ExitCode


class RLHFError(Exception):
    """Base of all errors that this project raises on purpose."""

    exit_code: ClassVar[ExitCode] = ExitCode.CRASH


class UserError(RLHFError):
    """A person has to change something; trying again cannot help."""


class UsageError(UserError):
    """The command line is wrong."""

    exit_code = ExitCode.USAGE


class DataError(UserError):
    """A dataset holds a row that cannot be used, or none at all."""

    exit_code = ExitCode.DATA


class InputError(UserError):
    """A model, an artifact or a dataset is missing, or is not the one that was promised."""

    exit_code = ExitCode.INPUT


class ConfigError(UserError):
    """An RLHFJob or a StageConfig breaks the contract."""

    exit_code = ExitCode.CONFIG


class ContractVersionError(ConfigError):
    """A StageConfig or a StageResult speaks another version of the contract than its reader."""

    def __init__(self, document: str, version: object, reader: str) -> None:
        super().__init__(
            f"{document}: contractVersion is {version!r}, but this {reader} speaks "
            f"{CONTRACT_VERSION}; use a trainer image and an operator of one release"
        )
