"""The command line: one file per verb, imported when the verb runs.

`main` turns every error into its exit code (DESIGN, section 4) and a message on standard error; a traceback is printed
only with `--debug`.
"""

import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from itertools import pairwise

from cyclopts import App, CycloptsError, MissingArgumentError, UnusedCliTokensError

from twostage import __version__
from twostage.errors import DataError, MissingError, TwostageError, UsageError

_INTERRUPTED = 130

_VERBS = {
    "demo": "Generate scenes, train a small detector on them and show its detections, in four minutes.",
    "train": "Train a detector on a data set.",
    "eval": "Evaluate a detector, or a file of results, on a data set.",
    "predict": "Detect objects in images.",
    "inspect": "Write an HTML page: every stage of a prediction, or why a data set's objects are missed.",
    "export": "Export a detector for ONNX Runtime, OpenVINO or torch, with proof.",
    "lineage": "Train R-CNN, SPPnet, Fast and Faster R-CNN on your data, and compare them.",
    "ablate": "Run the papers' ablations on your data, and compare with their tables.",
    "bench": "Time a detector on this machine, per stage and beside torchvision's.",
    "env": "Print versions, devices and threads, for a bug report.",
}

# Verbs of two words, each in cli/GROUP_VERB.py.
_GROUPS = {
    "data": (
        "Check, convert, split and inspect data sets.",
        {
            "get": "Download a data set of the papers: voc2007, voc2012, coco2017.",
            "check": "List every fault of a data set; with --fix, write a repaired copy.",
            "stats": "Print image sizes, classes, objects, and the reach of a model's anchors.",
            "view": "Write an HTML page of the images with their boxes.",
            "convert": "Convert a data set to another layout, without loss.",
            "proposals": "Compute region proposals and their recall.",
            "split": "Split a data set into new splits, stratified by class.",
            "audit": "List labels that are probably wrong, and images to label next.",
        },
    ),
    "weights": (
        "Published weights, and weights files of other projects.",
        {
            "list": "List the published weights.",
            "info": "Print the metadata of a weights file or of published weights.",
            "card": "Print the model card of a weights file.",
            "get": "Download published weights into the cache.",
            "convert": "Convert weights of detectron2, mmdetection, torchvision and others.",
            "compare": "Compare two detectors on images, and name what differs.",
        },
    ),
}


def application() -> App:
    """The command line, without the modules of its verbs: cyclopts imports each on first use."""
    from twostage.cli.settings import fill

    app = App(
        name="twostage",
        help="Two-stage object detectors, from R-CNN to Hybrid Task Cascade, on your own images.",
        help_epilogue="`twostage VERB --help` shows the options of a verb.",
        version=f"twostage {__version__}",
        config=fill,
        help_format="plaintext",
        print_error=False,
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    for place, (name, help) in enumerate(_VERBS.items()):
        app.command(f"twostage.cli.{name}:{name}", name=name, help=help, sort_key=place)
    for place, (group, (help, verbs)) in enumerate(_GROUPS.items(), start=len(_VERBS)):
        inner = App(name=group, help=help, sort_key=place)
        for rank, (name, line) in enumerate(verbs.items()):
            inner.command(f"twostage.cli.{group}_{name}:{name}", name=name, help=line, sort_key=rank)
        app.command(inner)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on `arguments` (default: the process's) and return the exit code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    if sys.stderr is None:  # closed, as by 2>&-: `print` would write messages to standard output
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # File names may hold bytes that are not text, or characters outside the console's code page.
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # as Python itself reads the names of files
    # Pillow warns above 89 megapixels and refuses images above 179, which is reported with the file's name.
    warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
    # torch, of several processes: the two names of one memory layout of a 1 x 1 convolution.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    try:
        code = int(application()(tokens) or 0)
        if sys.stdout is not None:
            sys.stdout.flush()  # Python's own at the end would report a closed pipe
        return code
    except BrokenPipeError:
        # Nobody reads the output any more, as in `twostage ... | head`.
        _discard_output()
        return 1
    except (Exception, KeyboardInterrupt) as error:
        kind, code, message = _kind_code_message(error)
        if isinstance(error, CycloptsError | UsageError | DataError | MissingError):  # not for failures of the machine
            message += _other_options(tokens, message)
        if "--debug" in tokens and code != _INTERRUPTED:
            traceback.print_exc()
        from twostage.cli.together import follows, has_group, let_rank_0_report, report_to_torchrun

        if code != _INTERRUPTED:
            let_rank_0_report()
        report_to_torchrun(message)
        if not follows() or has_group():
            print(f"twostage: {message}", file=sys.stderr)
        # `verb` notes whether the options ask for JSON, because a configuration file may do so too.
        if getattr(error, "json_wanted", "--json" in tokens) and not follows():
            from twostage.atomic import to_json

            try:
                print(to_json({"error": {"kind": kind, "code": code, "message": message}}), flush=True)
            except OSError:  # a closed pipe, or a full disk, which may be the error itself
                _discard_output()
        return code


def _discard_output() -> None:
    """Send what is still in the buffer of standard output nowhere: to write it failed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _other_options(tokens: Sequence[str], message: str) -> str:
    """A line that names the configuration file, which may hold the wrong value, unless the message names it.

    That of `twostage weights` is another project's.
    """
    if tokens[:1] == ["weights"]:
        return ""
    files = [after for token, after in pairwise([*tokens, ""]) if token == "--config"]
    files += [token.partition("=")[2] for token in tokens if token.startswith("--config=")]
    return f"\nOptions were also read from {files[-1]}." if files and files[-1] not in message else ""


def _kind_code_message(error: BaseException) -> tuple[str, int, str]:
    """Kind, exit code and message."""
    if isinstance(error, KeyboardInterrupt):
        return "KeyboardInterrupt", _INTERRUPTED, "stopped"
    if isinstance(error, CycloptsError):
        error = UsageError(f"{_describe(error)}\n{_where_help_is(error)}")
    elif isinstance(error, OSError):
        error = TwostageError(_describe_os(error))
    elif not isinstance(error, TwostageError):
        error = _internal(error)
    return type(error).__name__, error.exit_code, str(error)


def _describe(error: CycloptsError) -> str:
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens and error.app:
        from twostage.cli.settings import refuse_assignment

        extra = error.unused_tokens[0]
        try:
            refuse_assignment(extra, {each.field_info.name for each in error.app.assemble_argument_collection()})
        except UsageError as hint:
            return str(hint)
        return f"unexpected argument {extra!r}"
    argument = error.argument if isinstance(error, MissingArgumentError) else None
    if argument is not None and argument.field_info.kind is argument.field_info.POSITIONAL_OR_KEYWORD:
        return f"{argument.field_info.name.upper()} is missing: {argument.parameter.help}"
    error.verbose = False
    return str(error)


def _where_help_is(error: CycloptsError) -> str:
    return f"Try `{' '.join(['twostage', *(error.command_chain or ())])} --help`."


def _describe_os(error: OSError) -> str:
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{': '.join([*names, error.strerror or str(error)])}"


def _internal(error: BaseException) -> TwostageError:
    # torch's own class is not imported here: the command line starts without torch.
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if memory or "can't allocate memory" in str(error):  # on the CPU torch raises a RuntimeError
        return TwostageError(f"out of memory: lower --batch or --size ({_first_line(error)})")
    return TwostageError(f"internal error: {type(error).__name__}: {_first_line(error)} (run with --debug)")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
