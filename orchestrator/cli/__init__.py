"""The command line: text in, text out. Results on stdout, everything else on stderr.

Heavy imports stand inside the commands, so that help and completion answer at once.
"""

from __future__ import annotations

import gc
import os
import sys
from traceback import format_exception
from typing import Annotated, NoReturn

import typer

from extensions import unreadable
from orchestrator.cli import carrying, knowing, reading, sweeping
from orchestrator.errors import OrchestrateError
from orchestrator.garbage import rarely_collected
from orchestrator.redaction import redacted

app = typer.Typer(
    help="Sweeps of neural-network pruning: plan, run, record, compare.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
for part in (sweeping, reading, carrying, knowing):
    app.add_typer(part.app)


@app.callback()
def top(
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks for errors, too.")] = False,
) -> None:
    if debug:
        os.environ["ORCHESTRATE_DEBUG"] = "1"


def main() -> None:
    """The entry point: errors of the user end in one line and their exit code, others in a traceback.

    Neither shows a secret of the store's address or of the environment.
    """
    try:
        with rarely_collected():
            raise SystemExit(typer.main.get_command(app).main(standalone_mode=False) or 0)
    except OrchestrateError as error:
        if os.environ.get("ORCHESTRATE_DEBUG"):
            _print_traceback(error)
        _fail(str(error), error.exit_code)
    except typer.exceptions.TyperException as error:
        if not error.format_message():  # no command was given, and the help is printed
            raise SystemExit(error.exit_code) from None
        _fail(f"{error.format_message()} See `orchestrate --help`.", error.exit_code)
    except typer.Abort:
        _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of a pipe had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except Exception as error:  # noqa: BLE001  a bug, whichever
        for line in unreadable():  # other libraries read all lists of entry points, and break off
            _fail(line, 4)
        _print_traceback(error)
        raise SystemExit(1) from None
    finally:
        gc.freeze()  # as it ends, Python would look through every module for garbage: a second


def _print_traceback(error: Exception) -> None:
    print(redacted("".join(format_exception(error))), end="", file=sys.stderr)


def _fail(message: str, exit_code: int) -> NoReturn:
    print(f"error: {redacted(message)}", file=sys.stderr)
    raise SystemExit(exit_code)
