"""The command line: text in, text out. Results on stdout, everything else on stderr.

Heavy imports are inside the commands, so that help and completion answer at once.
"""

from __future__ import annotations

import gc
import os
import sys
from traceback import format_exception
from typing import Annotated, Any, NoReturn

import typer

from orchestrator.cli import compress, info, networks, results, sweep
from orchestrator.cli.options import check_environment
from orchestrator.errors import OrchestrateError, OutputError
from orchestrator.redaction import redact
from orchestrator.system.console import escaped, output_streams, print_line, print_text
from orchestrator.system.memory import infrequent_gc
from pruning.user_code.plugins import unreadable_packages

app = typer.Typer(
    help="Sweeps of neural-network pruning: plan, run, record, compare.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
for module in (sweep, compress, results, networks, info):
    app.add_typer(module.app)


@app.callback()
def top(
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks for errors, too.")] = False,
) -> None:
    if debug:
        os.environ["ORCHESTRATE_DEBUG"] = "1"


def main() -> None:
    """Run the command: errors of the user end in one line and their exit code, bugs in a traceback.

    Neither shows a secret of the store's address or of the environment.
    """
    with output_streams() as is_open:
        try:
            with infrequent_gc():
                if not is_open:
                    raise OutputError("standard output is closed; give it somewhere to go, as > /dev/null")
                check_environment()
                code = _command().main(standalone_mode=False) or 0
            sys.stdout.flush()
            raise SystemExit(code)
        except OrchestrateError as error:
            if os.environ.get("ORCHESTRATE_DEBUG"):
                _print_traceback(error)
            _fail(str(error), error.exit_code)
        except typer.exceptions.TyperException as error:
            if not error.format_message():  # without a command the help was printed
                raise SystemExit(error.exit_code) from None
            _fail(f"{error.format_message()} See `{_help_command(error)}`.", error.exit_code)
        except typer.Abort:
            _fail("interrupted", 130)
        except Exception as error:  # noqa: BLE001  a bug, whichever
            for line in unreadable_packages():  # lists of entry points, in which other libraries fail
                _fail(line, 4)
            _print_traceback(error)
            raise SystemExit(1) from None
        finally:
            gc.freeze()  # as it ends, Python would look through every module for garbage: a second


def _command() -> Any:  # the command of typer, whose types are its own
    """Return the command line, with control characters escaped within commands, but not in help."""
    root = typer.main.get_command(app)
    commands = [root]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        if command.callback is not None:
            command.callback = escaped()(command.callback)
    return root


def _help_command(error: Any) -> str:
    """Return the command whose help explains a usage error."""
    words, context = ["--help"], getattr(error, "ctx", None)
    while context is not None and context.parent is not None:
        words.insert(0, context.info_name)
        context = context.parent
    return " ".join(["orchestrate", *words])


def _print_traceback(error: Exception) -> None:
    print_text(redact("".join(format_exception(error)).rstrip("\n")), error=True)


def _fail(message: str, exit_code: int) -> NoReturn:
    print_line(f"error: {redact(message)}", error=True)
    raise SystemExit(exit_code)
