"""Progress bars: on a terminal tqdm's own; in a file, as in the log of a job, a line now and then."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    Plain = tqdm[Any]  # generic in its stubs alone
else:
    Plain = tqdm
LOG_SECONDS = 30.0
"""Least time between two lines of a bar that nobody watches."""


class Bar(Plain):
    """A bar with tqdm's arguments, methods and attributes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._watched, self._told = sys.stderr.isatty(), -LOG_SECONDS
        super().__init__(*arguments, **options)

    def refresh(self, *arguments: Any, **options: Any) -> bool | None:  # type: ignore[override]  # the stub: None
        """Show the bar; in a file only if its last line is old enough."""
        if not self._watched:
            if time.monotonic() - self._told < LOG_SECONDS:
                return None
            self._told = time.monotonic()
        return super().refresh(*arguments, **options)

    def clear(self, *arguments: Any, **options: Any) -> None:
        """Make room for a message; lines of a file stay where they are."""
        if self._watched:
            super().clear(*arguments, **options)

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """Return what prints the bar: over itself on a terminal, below itself in a file."""
        if file.isatty():
            return tqdm.status_printer(file)
        return lambda line: print(line, file=file, flush=True)
