"""`python -m twostage`, the same as the command `twostage`."""

import sys

from twostage.cli import main

sys.exit(main())
