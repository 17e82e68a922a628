"""The command `skopeo-dir`: its subcommands, and how errors and signals end it."""

import functools
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Annotated, NoReturn

import typer

from exporter import __version__
from exporter.cli.check import check_images
from exporter.cli.console import print_error
from exporter.cli.export import export_images
from exporter.cli.groups import ungrouped
from exporter.cli.list import list_images
from exporter.cli.migrate import migrate
from exporter.cli.push import push_images
from exporter.cli.verify import verify_images
from exporter.errors import EXIT_SOME_FAILED, Interrupted, SkopeoDirError

app = typer.Typer(
    name="skopeo-dir",
    help="Move a Docker Distribution registry's storage to Harbor, and prove that it arrived.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: no box, no markup in [brackets], no import of rich
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"skopeo-dir {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
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


def _add(name: str, function: Callable[..., int]) -> None:
    """Add a command: it returns its exit code, and its errors become a sentence and theirs."""
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

    app.command(name)(run)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    # Once is a request to end in order, twice is the kernel's own way.
    signal.signal(number, signal.SIG_DFL)
    raise Interrupted(number)


_add("list", list_images)
_add("check", check_images)
_add("export", export_images)
_add("push", push_images)
_add("verify", verify_images)
_add("migrate", migrate)


def main() -> None:
    """Run the command line; the entry point of the `skopeo-dir` script."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app(prog_name="skopeo-dir")
    except SystemExit as end:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        # The kernel takes memory back in less time than the interpreter takes itself apart.
        os._exit(end.code if isinstance(end.code, int) else end.code is not None)
