"""`helm test` runs this in a pod: the operator's Service answers, and tells its metrics.

Arguments: the Service's URL, and for how many seconds the operator may not be ready yet.
"""

import sys
import time
import urllib.request


def get(url: str, deadline: float) -> str:
    """The answer, waited for until the deadline."""
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(answer.read().decode())
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"{url}: {error}; look at the operator's pod and its log")
        time.sleep(0.5)


_, service, patience = sys.argv
until = time.monotonic() + float(patience)
get(f"{service}/readyz", until)
if "\nrlhf_operator_" not in get(f"{service}/metrics", until):
    sys.exit(f"{service}/metrics: tells no metric of the operator; who else answers there?")
