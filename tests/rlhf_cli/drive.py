"""`rlhf run` with the stand-in as launcher, as a process of its own that can be killed.

Run as `python drive.py FILE ROOT`.
"""

import sys
from pathlib import Path

from rlhf_api.errors import RLHFError
from rlhf_cli.app import run_job

if __name__ == "__main__":
    launcher = (sys.executable, str(Path(__file__).with_name("standin.py")))
    try:
        sys.exit(run_job(Path(sys.argv[1]), Path(sys.argv[2]), [], launcher=launcher))
    except RLHFError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
