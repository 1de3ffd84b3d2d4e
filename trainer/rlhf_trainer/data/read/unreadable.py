"""What the system says of a person's files, as a refusal that names the field.

Called around everything that looks at a path of the spec: a name that is too long, a loop of links
or a file in place of a folder stays so, however often the stage is tried.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from rlhf_api.errors import InputError
from rlhf_api.names import Reason
from rlhf_trainer.errors import failure_of

_SHOWN_CHARACTERS = 200


@contextmanager
def input_errors(field: str) -> Iterator[None]:
    """Raise an OSError without a word of its own as an InputError.

    A full or failing disk, permissions and networks have words of their own, and pass.

    Args:
        field: path of the field that names the input, for the message.

    Raises:
        InputError: the field, the system's words, the path and a remedy.
    """
    try:
        yield
    except OSError as error:
        if failure_of(error).reason is not Reason.CRASHED:
            raise
        reason = error.strerror or str(error) or type(error).__name__
        place = str(error.filename or "what it names")
        if len(place) > _SHOWN_CHARACTERS:
            place = f"{place[:_SHOWN_CHARACTERS]}... ({len(place)} characters)"
        raise InputError(
            f"{field}: {place} cannot be read: {reason}; correct the path, or what lies there"
        ) from error
