"""A Python function as a reward: imported before any weights are loaded, called with each rollout.

Called by `scoring`. What the function raises ends the stage as a mistake of its author, who is told
where; only a lost connection counts as something that may pass.
"""

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf_api.errors import ConfigError, InputError
from rlhf_api.v1alpha1 import FunctionReward
from rlhf_trainer.data.read.unreadable import input_errors
from rlhf_trainer.data.read.uris import Hub, locate
from rlhf_trainer.errors import ServiceUnavailable
from rlhf_trainer.ppo.rewards.answers import Texts, checked_scores


@dataclass(frozen=True)
class Function:
    """A user's function that is ready to score.

    Attributes:
        function: takes prompts and responses as lists of strings, gives as many numbers.
        who: field and value that name it, for messages.
    """

    function: Callable[[list[str], list[str]], Any]
    who: str

    @classmethod
    def open(cls, spec: FunctionReward, claims: Mapping[str, str], field: str) -> "Function":
        """Import the function.

        Args:
            spec: which, and where its module is.
            claims: where each claim is mounted.
            field: path of the spec's field, such as `spec.stages.ppo.rewards[0].function`.

        Raises:
            InputError: there is no such folder, module or function, or it cannot be called so.
            ConfigError: the folder is named by a URI that no module can be read from.
        """
        who = f"{field}.name: {spec.name}"
        folder = None if spec.uri is None else _folder(spec.uri, claims, f"{field}.uri")
        module_name, _, name = spec.name.partition(":")
        module = _imported(module_name, folder, who)
        function = getattr(module, name, None)
        if function is None:
            raise InputError(
                f"{who}: {_file_of(module)} has no {name}; define it or correct the name"
            )
        _require_two_arguments(function, who)
        return cls(function, who)

    def __call__(self, texts: Texts) -> list[float]:
        """See `Judge`."""
        try:
            given = self.function(list(texts.prompts), list(texts.responses))
            return checked_scores(given, texts, self.who)
        except InputError:
            raise
        except (ConnectionError, TimeoutError) as error:
            raise ServiceUnavailable(
                f"{self.who} raised {_described(error)}; try again when what it asks answers"
            ) from error
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:  # whatever its author did not think of
            raise InputError(f"{self.who} raised {_described(error)}; correct it") from error


def _folder(uri: str, claims: Mapping[str, str], field: str) -> Path:
    place = locate(uri, claims, field)
    if isinstance(place, Hub):
        raise ConfigError(f"{field}: {uri}: no module is read from a hub; use file:// or pvc://")
    with input_errors(field):
        is_folder = place.is_dir()
    if not is_folder:
        raise InputError(
            f"{field}: {uri}: {place} is no folder; name the folder that holds the module"
        )
    return place


def _imported(name: str, folder: Path | None, who: str) -> ModuleType:
    if folder is not None and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    # A module may raise anything when it is imported; a script leaves by sys.exit.
    except (Exception, SystemExit) as error:
        place = "the image's modules" if folder is None else str(folder)
        raise InputError(
            f"{who}: importing {name} from {place} raised {_described(error)}; correct the module, "
            "or name and uri"
        ) from error
    if folder is not None and folder.resolve() not in Path(_file_of(module)).resolve().parents:
        raise InputError(
            f"{who}: {name} is imported already from {_file_of(module)} and not from {folder}; "
            "give the module a name of its own"
        )
    return module


def _require_two_arguments(function: Any, who: str) -> None:
    if not callable(function):
        raise InputError(f"{who} is {type(function).__name__} and no function; name a function")
    if inspect.iscoroutinefunction(function):
        raise InputError(f"{who} is a coroutine function; make it a plain one")
    try:
        inspect.signature(function).bind([], [])
    except TypeError as error:
        raise InputError(
            f"{who} cannot be called as function(prompts, responses): {error}; let it take two "
            "lists of strings"
        ) from error
    except ValueError:
        # Some functions of C tell no signature; the first rollout will show.
        return


def _file_of(module: ModuleType) -> str:
    return str(getattr(module, "__file__", None) or module.__name__)


def _described(error: BaseException) -> str:
    """Class, message and place of an error of somebody else's code."""
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{f': {text}' if text else ''}{place}"
