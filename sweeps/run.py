"""What `ray submit SWEEP sweeps/run.py [-- OPTIONS OF IDP RUN]` runs on the head of a cluster.

Ray's launcher wants a script beside the cluster file; the file, which is a sweep too, is named by IDP_SWEEP.
"""

import os
import sys

from orchestrator.cli.main import main

if __name__ == "__main__":
    if "IDP_SWEEP" not in os.environ:
        sys.exit("run.py: IDP_SWEEP names no sweep; run it by: ray submit sweeps/table1.yaml sweeps/run.py")
    sys.exit(main(["run", os.environ["IDP_SWEEP"], "--address", "auto", *sys.argv[1:]]))
