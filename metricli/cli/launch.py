"""Run the app and turn whatever happens into one clear line and the documented exit code."""

from __future__ import annotations

import atexit
import errno
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from metricli.cli.requeue import with_default_code
from metricli.cli.signals import end_quietly, leave_at_second, leave_last, raised
from metricli.errors import Interrupted, MetricliError, ResourceError, Terminated, UsageError, interruption
from metricli.placement import placement
from metricli.tables import broken, printable_lines, shortened

_UNASKABLE = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM)
"""What already the question raises whether there is a file."""
_TIDY = "\r\x1b[2K\x1b[?25h"
"""Clears the line and shows the cursor: a process that was killed has left its bar, and hidden it."""


class _Stdout:
    has_document = False


class _Stderr:
    has_error = False


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script: never returns, always exits with a documented code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115  (closed by the shell: `>&-`)
        stream.reconfigure(errors="backslashreplace")  # a word that the terminal cannot show is no failure
        setattr(sys, name, stream)
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")  # it tidies up: no news
    atexit.register(leave_last)  # the first to be registered is the last to be called
    leave_at_second(partial(_say_second, as_json="--json" in words))
    code = run(words)
    end_quietly(code)
    if code and _several():
        from metricli.cli.membership import leave

        leave(code)
    sys.exit(code)


def run(words: Sequence[str]) -> int:
    """Run one command line; the exit code."""
    _Stdout.has_document = _Stderr.has_error = False
    code = 0
    try:
        with raised():
            code = _run(with_default_code(words))
            sys.stdout.flush()
    except (KeyboardInterrupt, Terminated) as error:  # while a failure was said
        return interruption(error).exit_code
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        _drop_stdout()
        return 128 + signal.SIGPIPE
    except OSError as error:
        _drop_stdout()
        what = f"cannot write the output: {error.strerror}"
        return code or fail(ResourceError(what, hint="free some space"), as_json=False)
    return code


def _run(words: Sequence[str]) -> int:
    from metricli.cli.app import app

    as_json = "--json" in words
    if _several():
        from metricli.cli.membership import become_member

        become_member()
    interrupted = interruption(KeyboardInterrupt())
    try:
        result = app(args=list(words), prog_name="metricli", standalone_mode=False)
    except MetricliError as error:
        return fail(error, as_json=as_json)
    except (KeyboardInterrupt, Terminated) as error:
        return fail(interruption(error), as_json=as_json)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # typer exits with 1 there
            raise error.__context__ from None
        raise
    except Exception as error:
        if isinstance(error, OSError) and "--install-completion" in words:  # into the home folder
            what = f"cannot write {str(error.filename)!r} for completion: {error.strerror}"
            return fail(ResourceError(what, hint="--show-completion prints the script"), as_json=as_json)
        return _fail_otherwise(error, as_json=as_json)
    if result == interrupted.exit_code:  # typer turns Ctrl-C into this number
        return fail(interrupted, as_json=as_json)
    return result if isinstance(result, int) else 0


def _drop_stdout() -> None:
    """Send what is still to be written nowhere, so that the interpreter does not fail on it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail_otherwise(error: Exception, *, as_json: bool) -> int:
    if type(error).__name__ == "Exit":
        return int(getattr(error, "exit_code", 0))
    if type(error).__name__ == "Abort":
        return fail(interruption(KeyboardInterrupt()), as_json=as_json)
    if hasattr(error, "format_message"):  # typer's own usage errors
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "metricli"
        if type(error).__name__ == "NoArgsIsHelpError":
            print(context.get_help() if context is not None else "", file=sys.stderr)  # noqa: T201
            return 2
        message = _in_house_style(error.format_message())
        hint = "" if message.endswith("?") else f"see {command} --help"
        return fail(UsageError(message, hint=hint), as_json=as_json)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = f"cannot write {error.filename or 'the output'}: {error.strerror}"
        return fail(ResourceError(what, hint="free some space"), as_json=as_json)
    if isinstance(error, OSError) and error.filename and error.errno in _UNASKABLE:
        what = f"cannot open {shortened(repr(str(error.filename)), 300)}: {str(error.strerror).lower()}"
        return fail(UsageError(what, hint="check the path and its rights"), as_json=as_json)
    traceback.print_exception(error)
    rank = getattr(error, "rank", 0)
    bug = MetricliError(
        f"rank {rank}: {type(error).__name__}: {error}" if rank else f"{type(error).__name__}: {error}",
        hint="this is a bug in metricli: please report it with the lines above",
    )
    return fail(bug, as_json=as_json)


def _in_house_style(text: str) -> str:
    text = text.rstrip(".").replace(". Did you mean", ", did you mean")
    text = re.sub(r" \(Possible options: (.*)\)$", r", did you mean \1?", text)
    return text[:1].lower() + text[1:]


def fail(error: MetricliError, *, as_json: bool) -> int:
    """Say a failure on stderr, on stdout too as a document with `--json`; its exit code."""
    if _several() and not _speaks(error):
        return error.exit_code
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        sys.stderr.write(_TIDY)
    _Stderr.has_error = True
    print("\n".join(broken(f"error: {printable_lines(str(error))}")), file=sys.stderr)  # noqa: T201
    if as_json and not _Stdout.has_document:  # a failure after the work stands in the document of the work
        print_json({"error": error.to_dict()})
    return error.exit_code


def _several() -> bool:
    """Whether a launcher has started this process as one of several."""
    try:
        return placement().size > 1
    except UsageError:  # said by the verb
        return False


def _speaks(error: MetricliError) -> bool:
    """Whether it is on this process to say a failure of several; the rank is named, the others come first."""
    from metricli.cli.membership import patience, wait_or_leave

    here = placement()
    if not here.is_main and isinstance(error, Interrupted):
        return False
    wait_or_leave(patience(error, here), error.exit_code)
    if not here.is_main:
        error.message = f"rank {here.rank}: {error.message}"
    return True


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    _Stdout.has_document = True
    text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)
    if not text.replace("\n", "").isprintable():  # a name that would steer a terminal is written as \u001b
        text = "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    print(text)  # noqa: T201


def _say_second(signum: int, *, as_json: bool) -> None:
    """What `fail` would say of a second signal, said by a thread while the main one hangs somewhere."""
    if _Stderr.has_error or (_several() and not placement().is_main):
        return
    error = interruption(KeyboardInterrupt() if signum == signal.SIGINT else Terminated())
    print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
    if as_json and not _Stdout.has_document:
        print_json({"error": error.to_dict()})
        sys.stdout.flush()
