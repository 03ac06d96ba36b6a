"""The `erasekit` command: parse, call, print.

Exit codes: 0 done, 1 failed (one line on stderr that tells the remedy), 2 bad usage. `--debug` shows the traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from erasekit.cli.parser import build_parser
from erasekit.errors import EraseKitError, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never raises for what a user can cause."""
    arguments = build_parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            if not arguments.debug:  # the libraries' notices to programmers would bury our one line
                warnings.simplefilter("ignore")
            code = _run(arguments)
            sys.stdout.flush()
            return code
    except BrokenPipeError:  # `erasekit show ... | head`: the reader has gone, and so may the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as error:
        return _failed(error, "interrupted: nothing half-written was left; run the same command again", arguments.debug)
    except UsageError as error:
        return _failed(error, str(error), arguments.debug, code=2)
    except EraseKitError as error:
        return _failed(error, str(error), arguments.debug)
    except OSError as error:
        return _failed(error, f"{error}: check the path, its permissions and the free space", arguments.debug)
    except Exception as error:  # the last line of defence: a bug still ends in one line, and --debug shows where
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return _failed(error, f"unexpected {type(error).__name__}: {reason}; run again with --debug and report it",
                       arguments.debug)  # fmt: skip


def _run(arguments: argparse.Namespace) -> int:
    from erasekit.cli import commands

    return commands.run(arguments)


def _failed(error: BaseException, line: str, debug: bool, *, code: int = 1) -> int:
    if debug:
        traceback.print_exception(error)
    print(f"erasekit: {' '.join(line.split())}", file=sys.stderr)
    return code
