"""`python -m twostage` without the plots of a finished run, which take longer than the training of most tests."""

import runpy

from twostage.training.folder import RunFolder

if __name__ == "__main__":
    RunFolder.draw = lambda *_: None
    runpy.run_module("twostage", run_name="__main__")
