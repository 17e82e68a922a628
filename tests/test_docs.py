"""README says what the program does: every command, every exit code, every flag that it shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from exporter import errors
from exporter.cli.app import command_line
from tests.registry import skopeo

README = (Path(__file__).parent.parent / "README.md").read_text()
COMMANDS = sorted(typer.main.get_command(command_line()).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_row_in_the_readme(command: str) -> None:
    assert f"| `skopeo-dir {command} " in README


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_page(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "exporter", command, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"Usage: skopeo-dir {command} ")


def test_the_readme_names_no_command_that_does_not_exist() -> None:
    assert sorted(set(re.findall(r"^\| `skopeo-dir (\S+)", README, re.MULTILINE))) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_long_option_of_a_command_is_in_the_readme(command: str) -> None:
    parameters = typer.main.get_command(command_line()).commands[command].params  # type: ignore[attr-defined]
    options = [name for each in parameters for name in each.opts if name.startswith("--")]
    assert [name for name in options if name not in README] == []


def test_the_table_of_exit_codes_is_complete() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", README, re.MULTILINE)
    documented = sorted(int(code) for row in rows for code in row.split(","))
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.SkopeoDirError)}
    signals = {errors.Interrupted(number).exit_code for number in (2, 15)}
    assert documented == sorted({errors.EXIT_OK} | codes | signals)


def test_the_skopeo_command_of_the_readme_has_flags_that_skopeo_knows() -> None:
    shown = re.search(r"^\$ skopeo sync (.*)$", README, re.MULTILINE)
    assert shown is not None
    usage = skopeo("sync", "--help")
    assert [flag for flag in re.findall(r"--[\w-]+", shown[1]) if flag not in usage] == []
