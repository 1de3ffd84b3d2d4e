"""stage.json, as both command lines of the trainer read it.

Called by `launch` and `__main__`.
"""

from collections.abc import Sequence
from pathlib import Path

from rlhf_api.errors import ConfigError, UsageError
from rlhf_api.v1alpha1 import StageConfig


def stage_file(arguments: Sequence[str], program: str) -> Path:
    """The only argument.

    Raises:
        UsageError: none, several or an option.
    """
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UsageError(
            f"arguments: {' '.join(arguments) or 'none'}: usage is python -m {program} stage.json"
        )
    return Path(arguments[0])


def read_stage_config(path: Path) -> StageConfig:
    """The configuration in `path`.

    Raises:
        UsageError: no such file.
        ContractVersionError: written by another release.
        ConfigError: anything else that is wrong with its content.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(f"{path}: {error.strerror}; give the path of a stage.json") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; write it anew") from error
    return StageConfig.from_json(text)
