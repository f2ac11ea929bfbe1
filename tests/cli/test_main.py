"""Exit codes, standard output and standard error."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cyclopts import App

import twostage.cli
from twostage.cli import main
from twostage.cli.settings import fill
from twostage.cli.verb import Outcome, verb
from twostage.errors import DataError, MissingError, ThresholdError, TwostageError, UsageError
from twostage.progress import images_bar
from twostage.training.progress import progress_bar

Shell = tuple[int, str, str]


@dataclass(frozen=True)
class Nothing:
    """No options of its own."""


@pytest.fixture
def run_verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Shell]:
    """Runs a function as the verb `go` and returns exit code, standard output and standard error."""

    def run(function: Callable[[], Outcome], *arguments: str) -> Shell:
        @verb(Nothing)
        def go(_options: Nothing) -> Outcome:
            """Go."""
            return function()

        app = App(
            config=fill,
            print_error=False,
            exit_on_error=False,
            suppress_keyboard_interrupt=False,
            result_action="return_value",
        )
        app.command(go, name="go")
        monkeypatch.setattr(twostage.cli, "application", lambda: app)
        code = main(["go", *arguments])
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TwostageError("no luck"), 1),
        (UsageError("no luck"), 2),
        (DataError("no luck"), 3),
        (MissingError("no luck"), 4),
        (ThresholdError("no luck"), 5),
        (OSError(28, "no luck", "results.json"), 1),
        (KeyError("no luck"), 1),
        (MemoryError("no luck"), 1),
    ],
)
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_error_is_a_message_and_an_exit_code(
    run_verb: Callable[..., Shell], error: Exception, code: int, arguments: list[str]
) -> None:
    def fail() -> Outcome:
        raise error

    found, output, messages = run_verb(fail, *arguments)
    assert found == code
    assert "no luck" in messages
    assert "Traceback" not in messages
    if arguments:
        assert json.loads(output)["error"]["code"] == code
    else:
        assert output == ""


def test_a_configuration_file_may_ask_for_json_also_of_an_error(run_verb: Callable[..., Shell], tmp_path: Path) -> None:
    def fail() -> Outcome:
        raise DataError("no luck")

    (tmp_path / "c.yaml").write_text("json: true\n")
    code, output, _ = run_verb(fail, "--config", str(tmp_path / "c.yaml"))
    assert code == 3
    error = json.loads(output)["error"]
    assert (error["kind"], error["code"]) == ("DataError", 3)
    assert error["message"].startswith("no luck\n")


@pytest.mark.parametrize(("rank", "waits"), [("0", 0), ("1", 1)])
def test_ranks_above_0_wait_for_the_message_of_rank_0(
    run_verb, monkeypatch: pytest.MonkeyPatch, rank: str, waits: int
) -> None:
    """torchrun ends all processes when one fails; without the wait rank 0 sometimes ended before its message."""
    waited: list[float] = []
    monkeypatch.setattr("twostage.cli.together.time.sleep", waited.append)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    monkeypatch.setenv("RANK", rank)

    def fails() -> Outcome:
        raise UsageError("no luck")

    code, _, messages = run_verb(fails)
    assert code == 2
    assert len(waited) == waits
    assert ("no luck" in messages) == (rank == "0")


def test_debug_shows_the_traceback(run_verb: Callable[..., Shell]) -> None:
    def fail() -> Outcome:
        raise ValueError("no luck")

    code, _, messages = run_verb(fail, "--debug")
    assert code == 1
    assert "Traceback" in messages
    assert "ValueError: no luck" in messages


def test_surprise_asks_for_debug(run_verb: Callable[..., Shell]) -> None:
    def fail() -> Outcome:
        raise ValueError("no luck\nsecond line")

    _, _, messages = run_verb(fail)
    assert messages == "twostage: internal error: ValueError: no luck (run with --debug)\n"


def test_ctrl_c_is_130(run_verb: Callable[..., Shell]) -> None:
    def stop() -> Outcome:
        raise KeyboardInterrupt

    code, output, messages = run_verb(stop)
    assert (code, output) == (130, "")
    assert "Traceback" not in messages


def test_json_is_one_object_whatever_is_printed(run_verb: Callable[..., Shell]) -> None:
    def chatter() -> Outcome:
        sys.stdout.write("for people\n")
        logging.getLogger("twostage.somewhere").info("on the way")
        return Outcome({"path": Path("a"), "score": np.float32(0.5), "boxes": np.zeros((1, 4))})

    code, output, messages = run_verb(chatter, "--json")
    assert code == 0
    assert json.loads(output) == {"path": "a", "score": 0.5, "boxes": [[0, 0, 0, 0]]}
    assert output.count("\n") == 1
    assert messages == "on the way\nfor people\n" or messages == "for people\non the way\n"


def test_failure_after_a_result_keeps_the_result(run_verb: Callable[..., Shell]) -> None:
    code, output, messages = run_verb(lambda: Outcome({"AP": 0.1}, ThresholdError("AP is too low")), "--json")
    assert code == 5
    assert json.loads(output) == {"AP": 0.1}
    assert messages == "twostage: AP is too low\n"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [([], ["info", "warning"]), (["--quiet"], ["warning"]), (["--debug"], ["debug", "info", "warning"])],
)
def test_messages_follow_quiet_and_debug(
    run_verb: Callable[..., Shell], arguments: list[str], shown: list[str]
) -> None:
    logger = logging.getLogger("twostage.somewhere")

    def speak() -> Outcome:
        logger.debug("debug")
        logger.info("info")
        logger.warning("warning")
        return Outcome({})

    _, output, messages = run_verb(speak, *arguments)
    assert output == ""
    assert [line.split()[-1] for line in messages.splitlines()] == shown
    assert not logging.getLogger("twostage").handlers, "the handler stays behind"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["trian", "x"], 'Did you mean "train"'),
        (["train", "x", "--epoch", "3"], "Did you mean --epochs"),
        (["train", "x", "--precision", "bf15"], 'Did you mean "bf16"'),
        (["train", "x", "--epochs", "many"], 'unable to convert "many" into int'),
        (["train", "x", "epochs=3"], "written --epochs 3"),
        (["train", "x", "surplus"], "unexpected argument 'surplus'"),
        (["train"], "no data set given"),
        (["train", "x", "--epochs", "1.9"], "--epochs 1.9: must be a whole number"),
        (["train", "x", "--set", "epochs=1.9"], "--set epochs 1.9: must be a whole number"),
        (["predict", "--weights", "w"], "SOURCES is missing: Files, folders"),
        (["eval"], "DATA is missing"),
        (["train", "x", "--epochs", "1", "--minutes", "1"], "choose one"),
        (["train", "x", "--scale", "2", "1"], "the smaller factor comes first"),
        (["data", "chek", "x"], "check"),
        (["predict", "x.jpg"], "--weights"),
        (["predict", "x.jpg", "--wieghts", "w"], "Did you mean '--weights'"),
        (["predict", "x.jpg", "-q", "--weights", "w"], "unknown option -q"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_wrong_usage_exits_with_2_and_a_message_on_standard_error(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    output, messages = capsys.readouterr()
    assert output == ""
    assert text in messages
    assert "Traceback" not in messages


VERBS = [
    ["demo"],
    ["train"],
    ["eval"],
    ["predict"],
    ["inspect"],
    ["bench"],
    ["env"],
    ["data", "check"],
    ["data", "convert"],
    ["data", "split"],
    ["data", "stats"],
    ["data", "view"],
]


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_verb_has_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--help"]) == 0
    output, messages = capsys.readouterr()
    assert f"Usage: twostage {' '.join(words)}" in output
    assert "--json" in output
    assert messages == ""


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    output = capsys.readouterr().out
    assert all(words[0] in output for words in VERBS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"twostage {twostage.__version__}\n"


def test_help_starts_in_half_a_second() -> None:
    """CPU time, which does not depend on other processes."""
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "twostage", "--help"], check=True, capture_output=True)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["env"], ["env", "--json"], ["env", "--nope", "--json"]])
def test_a_closed_pipe_causes_no_traceback(words: list[str], unbuffered: str) -> None:
    """As in `twostage --help | head -1`."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "twostage", *words]
    variables = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=variables)
    os.close(write)
    assert run.returncode == (2 if "--nope" in words else 1)
    assert "Traceback" not in run.stderr
    assert "Exception" not in run.stderr


def test_without_standard_error_json_stays_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `2>&-` starts it."""
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["env", "--nope", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == 2


def test_bars_need_no_standard_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program without a console; standard output, which has the results, has no bars in it."""
    monkeypatch.setattr(sys, "stderr", None)
    with images_bar("images", quiet=False) as show, progress_bar(quiet=False):
        show(1, 2)
    assert capsys.readouterr().out == ""


def test_env_prints_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["twostage"] == twostage.__version__
    assert found["packages"]["torch"].startswith("2.")
    assert found["cpu"]["cores"] >= 1
    assert isinstance(found["devices"], list)


@pytest.mark.parametrize("form", [["--config", "{file}"], ["--config={file}"]])
def test_an_error_in_a_configuration_file_names_the_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, form: list[str]
) -> None:
    """The message about the value does not name the file that holds it."""
    (tmp_path / "options.yaml").write_text("data: nowhere\n")
    code = main(["data", "check", *(word.format(file=tmp_path / "options.yaml") for word in form)])
    assert code == 3
    messages = capsys.readouterr().err
    assert "nowhere: does not exist" in messages
    assert "options.yaml" in messages
