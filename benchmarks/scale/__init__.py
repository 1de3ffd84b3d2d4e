"""What `operator_scale.py` is made of.

The control plane and the operator's process are those of the tests, which this makes importable.
"""

import importlib
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
versions = importlib.import_module("cluster.versions")
