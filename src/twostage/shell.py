"""Commands to be copied into a shell, quoted as that of this system takes them."""

import os
import shlex
from pathlib import Path


def command(*words: str | Path) -> str:
    """The words as one command line; those with spaces or special characters are quoted."""
    given = [str(word) for word in words]
    if os.name != "nt":
        return shlex.join(given)
    from subprocess import list2cmdline  # not before it is used, since the command line imports this module

    return list2cmdline(given)
