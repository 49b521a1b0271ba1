"""What all commands share: exit codes, one-line errors, and groups of options that are written once.

| exit code | meaning                                                                                             |
|-----------|-----------------------------------------------------------------------------------------------------|
| 0         | done                                                                                                |
| 1         | a bug in onnxq                                                                                      |
| 2         | bad input or usage; nothing was written                                                             |
| 3         | ``quantize`` wrote a model that is slower than float or loses too much; ``evaluate``: a metric does |
| 130       | interrupted                                                                                         |
"""

from __future__ import annotations

import errno
import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from onnxq.errors import OnnxqError, one_line
from onnxq.files.temporary import NO_ROOM

if TYPE_CHECKING:
    from onnxq.measure.metric import MetricComparison

BUG, BAD_INPUT, NOT_GOOD, INTERRUPTED = 1, 2, 3, 130
TRACEBACK = "ONNXQ_TRACEBACK"
_BROKEN = "install it again (pip install --force-reinstall), or give the process more memory"
# What the system refuses, whatever it was asked by: by number of the error, what can be done.
_OF_THE_SYSTEM = {
    errno.ENOSPC: NO_ROOM,
    errno.EDQUOT: NO_ROOM,
    errno.EFBIG: NO_ROOM,
    errno.EROFS: "set TMPDIR to a folder that can be written",
    errno.EACCES: "set TMPDIR to a folder that can be written",
    errno.ENOMEM: "give fewer or smaller samples, or more memory",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "check the disk",
}
# Long enough for every message that lists names, short enough to stay readable.
_LONGEST = 1000


def lost_too_much(metric: MetricComparison) -> str:
    """A phrase about a measure that loses more than it may."""
    return f"{metric.name} loses {-metric.difference:.4g}, and may lose {metric.max_drop:.4g} (--max-drop)"


def fail(message: str, code: int, *, hint: str = "") -> NoReturn:
    """End the command with ``error: message``, and ``hint: hint`` if there is one, on stderr and exit code ``code``."""
    typer.echo(f"error: {message}" + (f"\nhint: {hint}" if hint else ""), err=True)
    raise typer.Exit(code)


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """``function`` with its exceptions turned into one line and an exit code."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except (typer.Exit, BrokenPipeError):  # a closed pipe (``| head``) is typer's to end quietly
            raise
        except KeyboardInterrupt:
            fail("interrupted", INTERRUPTED)
        except OnnxqError as error:
            _traceback()
            fail(one_line(error.what, limit=_LONGEST), BAD_INPUT, hint=one_line(error.hint, limit=_LONGEST))
        except MemoryError:
            _traceback()
            fail("the memory does not suffice", BAD_INPUT, hint="give fewer or smaller samples, or more memory")
        except ImportError as error:
            _traceback()
            fail(f"a package cannot be loaded: {one_line(error)}", BAD_INPUT, hint=_BROKEN)
        except OSError as error:
            if error.errno not in _OF_THE_SYSTEM:
                _bug(error)
            _traceback()
            where = f" ({error.filename})" if error.filename else ""
            fail(f"{error.strerror}{where}", BAD_INPUT, hint=_OF_THE_SYSTEM[error.errno])
        except Exception as error:
            _bug(error)

    return wrapper


def _bug(error: Exception) -> NoReturn:
    _traceback()
    fail(
        f"this is a bug in onnxq, please report it ({TRACEBACK}=1 shows where it happened): "
        f"{type(error).__name__}: {one_line(error)}",
        BUG,
    )


def _traceback() -> None:
    if os.environ.get(TRACEBACK):
        import traceback

        traceback.print_exc(file=sys.stderr)


def takes(build: Callable[..., Any], *, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: instead of its parameter ``name``, a command has all parameters of ``build``, whose value it gets.

    That is how options that several commands share are declared once.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True).parameters
        shared = inspect.signature(build, eval_str=True).parameters

        @functools.wraps(function)
        def wrapper(**given: Any) -> None:
            given[name] = build(**{key: given.pop(key) for key in shared})
            function(**given)

        parameters = [p for key, p in own.items() if key != name] + list(shared.values())
        # typer reads a command's options from its signature, and every parameter by name.
        keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        wrapper.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
        return wrapper

    return decorate
