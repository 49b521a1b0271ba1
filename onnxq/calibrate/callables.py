"""Feeds from Python: iterables of dicts, functions that make them, and ``package.module:function`` as text."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path

from onnxq.calibrate.casting import Array
from onnxq.calibrate.dicts import dict_labels, feed_piece
from onnxq.calibrate.layout import Layout, reading_of_dicts
from onnxq.calibrate.sources import Piece, Source
from onnxq.errors import DataError, OnnxqError, one_line

_REFERENCE = re.compile(r"(?P<module>.+):(?P<function>[A-Za-z_][\w.]*)")


class StreamSource(Source):
    """Dicts as an iterable yields them; ``make`` gives that iterable anew for every pass."""

    def __init__(self, make: Callable[[], object], layout: Layout, *, where: str) -> None:
        self._make, self.layout = make, layout
        self.where = self.description = where
        self.reading = reading_of_dicts(layout)

    def __iter__(self) -> Iterator[Piece]:
        for number, item in enumerate(self._items()):
            yield feed_piece(item, self.layout, where=self.where, sample=number)

    def labels(self, key: str) -> Array:
        return dict_labels(self._items(), key, where=self.where)

    def _items(self) -> Iterator[object]:
        number = 0
        try:
            made = self._make()
            if not isinstance(made, Iterable):
                raise DataError(f"{self.where} returns {type(made).__name__}", hint="return an iterable of dicts")
            iterator = iter(made)
        except OnnxqError:
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever the user's code raises is shown as theirs, SystemExit too
            raise DataError(f"{self.where} raised {type(error).__name__}: {one_line(error)}") from error
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                return
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise DataError(
                    f"{self.where} raised {type(error).__name__} at sample {number}: {one_line(error)}"
                ) from error
            yield item
            number += 1


class SizedStream(StreamSource):
    """An iterable that knows its length, so that progress can be shown."""

    def __init__(self, items: Iterable[object], size: Sized, layout: Layout, *, where: str) -> None:
        super().__init__(lambda: items, layout, where=where)
        self._size = size

    def count(self) -> int:
        return len(self._size)


def parse_reference(text: str) -> tuple[str, str] | None:
    """``(module or file.py, function)`` of ``module:function``, None where ``text`` is no such reference."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        return None
    module = match["module"]
    return (module, match["function"]) if module.endswith(".py") or re.fullmatch(r"\w+(\.\w+)*", module) else None


def load_reference(module: str, function: str) -> object:
    """The object ``function`` of ``module`` (an importable name, or a path that ends in ``.py``).

    The working directory (of a path: its folder) is searched first, as ``python`` itself would. DataError where it
    cannot be imported.
    """
    where = f"{module}:{function}"
    is_file = module.endswith(".py")
    if is_file and not os.path.isfile(module):
        raise DataError(f"{where}: there is no file {module}", hint="give file.py:function or package.module:function")
    sys.path.insert(0, str(Path(module).resolve().parent) if is_file else os.getcwd())
    added = sys.path[0]
    try:
        if is_file:
            spec = importlib.util.spec_from_file_location(f"_onnxq_feed_{Path(module).stem}", module)
            if spec is None or spec.loader is None:
                raise ImportError(f"{module} is not a Python file")
            found: object = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(found)  # type: ignore[arg-type]
        else:
            found = importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may raise anything while it is imported, and exit too
        raise DataError(
            f"{where} cannot be imported: {type(error).__name__}: {one_line(error)}",
            hint="correct it, or run from its folder",
        ) from error
    finally:
        if added in sys.path:
            sys.path.remove(added)
    for part in function.split("."):
        if not hasattr(found, part):
            raise DataError(f"{module} has no function {part!r}", hint="check the name after the colon")
        found = getattr(found, part)
    return found
