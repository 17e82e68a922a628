"""The command `skopeo-dir`: its subcommands, and how errors and signals end it."""

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import import_module
from types import FrameType
from typing import Annotated, NoReturn

import typer

from exporter import __version__, files
from exporter.cli.console import print_error
from exporter.cli.groups import ungrouped
from exporter.errors import EXIT_SOME_FAILED, Interrupted, SkopeoDirError

_COMMANDS = {
    "list": "list_images",
    "check": "check_images",
    "export": "export_images",
    "push": "push_images",
    "verify": "verify_images",
    "migrate": "migrate",
}  # the module beside this one, and the function in it


def command_line(names: Iterable[str] = _COMMANDS) -> typer.Typer:
    """Return the command line with these commands; each takes some milliseconds to import."""
    app = typer.Typer(
        name="skopeo-dir",
        help="Move a Docker Distribution registry's storage to Harbor, and prove that it arrived.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help: no box, no markup in [brackets], no import of rich
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name in names:
        function = getattr(import_module(f"exporter.cli.{name}"), _COMMANDS[name])
        app.command(name)(_ending(function))
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"skopeo-dir {__version__}")  # noqa: T201
        raise typer.Exit


def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Move a Docker Distribution registry's storage to Harbor, and prove that it arrived."""


def _ending(function: Callable[..., int]) -> Callable[..., NoReturn]:
    """Return a command that ends with the code that it returns, or with a sentence and a code."""
    function = ungrouped(function)

    @functools.wraps(function)
    def run(*args: object, **kwargs: object) -> NoReturn:
        try:
            code = function(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader of our output has gone (`| head`); the rest has nobody to go to.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = EXIT_SOME_FAILED
        except Interrupted as error:
            print_error(error)
            with suppress(OSError):
                sys.stdout.flush()
            # Not by `sys.exit`, which waits for every thread: one may wait for an answer.
            os._exit(error.exit_code)
        except SkopeoDirError as error:
            print_error(error)
            code = error.exit_code
        raise typer.Exit(code)

    return run


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    # Once is a request to end in order, twice is the kernel's own way.
    signal.signal(number, signal.SIG_DFL)
    raise Interrupted(number)


def main() -> None:
    """Run the command line; the entry point of the `skopeo-dir` script."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    asked = sys.argv[1:2]
    app = command_line(asked if asked and asked[0] in _COMMANDS else _COMMANDS)
    code = 0
    try:
        app(prog_name="skopeo-dir")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except OSError as error:  # of stdout: all other files have a sentence of their own
        failure = files.failure(error, error.filename or "stdout")
        print_error(failure)
        code = failure.exit_code
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # The kernel takes memory back in less time than the interpreter takes itself apart.
    os._exit(code)
