"""
The command line, ``runlog``.

One module a command. What a command prints for others to read goes to stdout,
everything said about it to stderr. Exit codes: 0 done, 1 error, 2 wrong usage,
3 no such run; 130 after Ctrl-C and 141 when the reader of a pipe has gone, as
programs that die of those signals have them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> NoReturn:
    """
    Run one command and leave the program with its exit code.

    Args:
        args: Arguments without the program's name; by default those of this process.

    Raises:
        SystemExit: Always.
    """
    from runlog.cli.app import cli  # noqa: PLC0415 - so that helpers of this package can be had without click

    cli.main(args=args, prog_name="runlog")
    raise AssertionError("click leaves by SystemExit")
