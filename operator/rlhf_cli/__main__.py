"""`python -m rlhf_cli`: the same as `rlhf`."""

import sys

from rlhf_cli.app import main

if __name__ == "__main__":
    sys.exit(main())
