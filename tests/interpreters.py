"""What a Python that a test starts needs of the one that runs the test."""

import os
import sys


def import_path() -> dict[str, str]:
    """The variable by which it finds the same modules, those of the tests among them."""
    return {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
