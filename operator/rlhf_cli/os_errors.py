"""What the system's refusals mean to a person: a sentence with the remedy, and the exit code.

Called by `app` at the edge of the process, for an OSError that nothing below it has explained.
"""

import errno

from rlhf_api.names import ExitCode

_KINDS: tuple[tuple[frozenset[int], ExitCode, str], ...] = (
    (
        frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}),
        ExitCode.IO,
        "free space; the same command then goes on",
    ),
    (
        frozenset({errno.EACCES, errno.EPERM, errno.EROFS}),
        ExitCode.NO_PERMISSION,
        "open it, or choose another --workdir",
    ),
    (
        frozenset({errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}),
        ExitCode.USAGE,
        "correct the path, or choose another --workdir",
    ),
    (
        frozenset({errno.ENOENT}),
        ExitCode.INPUT,
        "something has removed it; put it back, or choose another --workdir",
    ),
)
_OTHERWISE = ExitCode.IO, "remove the cause; the same command then goes on"


def explained(error: OSError) -> tuple[ExitCode, str]:
    """The exit code, and a sentence of one line."""
    found = ((code, remedy) for numbers, code, remedy in _KINDS if error.errno in numbers)
    code, remedy = next(found, _OTHERWISE)
    # A write that fails on the way to the disk does not say of which file.
    name = "the workdir" if error.filename is None else error.filename
    told = error.strerror or str(error) or type(error).__name__
    return code, f"{name}: {' '.join(told.split())}; {remedy}"
