"""`python -m twostage`, the same as the command `twostage`."""

import atexit
import os
import sys

from twostage.cli import main

code = main()
if "LOCAL_RANK" in os.environ:
    # One of torchrun's processes. All is done and written; but now and then a thread of torch's outlives the group, and
    # C++ aborts at the very end ("terminate called without an active exception"), which ends all the others.
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(code)
sys.exit(code)
