"""The commands: ddpm-train, ddpm-sample, ddpm-evaluate, ddpm-push, and the scripts that call them from a clone.

A command reads its arguments before it imports torch. Exit codes: 0, done; 1, the run failed or a package is missing; 2, an argument is
wrong, or what it names cannot be read or written; 130, a second Ctrl-C.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

if TYPE_CHECKING:  # as slow as torch
    from transformers import HfArgumentParser


def command(main: Callable[[list[str]], int | None]) -> Callable[..., int]:
    """main(args) with its errors told in one line. It takes the process's own arguments by default, and returns the exit code."""

    @functools.wraps(main)
    def run(args: list[str] | None = None) -> int:
        try:
            return main(sys.argv[1:] if args is None else args) or 0
        except KeyboardInterrupt:
            return 130
        except (FloatingPointError, ModuleNotFoundError, ValueError, OSError, SafetensorError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1 if isinstance(error, FloatingPointError | ModuleNotFoundError) else 2

    return run


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults that are values, of others the help says what holds; and each name of an option once."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_choice = action.default is False and action.nargs is None  # true or false, and no flag
        has_value = action.default or type(action.default) in (int, float) or is_choice
        return super()._get_help_string(action) if has_value else action.help

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = [name for name in action.option_strings if "-" not in name[2:]]  # --a-b is --a_b as well
        if not names or action.nargs in (0, "?"):
            return ", ".join(names) or super()._format_action_invocation(action)
        return f"{', '.join(names)} {self._format_args(action, action.dest.upper())}"


def parse_dataclass(parser: "HfArgumentParser", args: list[str]) -> tuple[Any, ...]:
    """What an HfArgumentParser makes of the arguments; of an unknown one an error."""
    parser.parse_args(args)
    return parser.parse_args_into_dataclasses(args, look_for_args_file=False)
