"""Every error this project raises on purpose.

A message says what went wrong, the likely cause and what to do about it, so that a user never has to read a traceback
to mend a run. Stages let these pass; ``cli`` prints them without a traceback and exits with status 2.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class L2AError(Exception):
    """Base of all errors that a user can mend."""


class SettingError(L2AError):
    """A setting has a value that cannot work; the message names the field and the value.

    A settings dataclass knows the names of its fields and not where it stands: whoever owns it adds the path, by
    :meth:`under` or :func:`owned_by`.
    """

    def __init__(self, field: str, value: object, reason: str) -> None:
        super().__init__(f"{field}={value!r}: {reason}")
        self.field, self.value, self.reason = field, value, reason

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.field, self.value, self.reason)

    def under(self, path: str) -> "SettingError":
        """Return the same complaint of a field of the settings at ``path``, as ``classifier.network``."""
        return type(self)(f"{path}.{self.field}" if path else self.field, self.value, self.reason)


@contextmanager
def owned_by(path: str) -> Iterator[None]:
    """Add the path of the settings in use to complaints about their fields."""
    try:
        yield
    except SettingError as error:
        raise error.under(path) from error.__cause__


class ConfigError(L2AError):
    """Settings cannot be read: no such file, a name that is no setting, a name twice, a value of another type."""


class DatasetError(L2AError):
    """The data set as a whole cannot be used: a missing folder, an unknown class, a class without videos."""


class LeakError(L2AError):
    """A test clip was about to be used for validation or in a pair."""


class VideoError(L2AError):
    """One video cannot be used. It is recorded in ``failed.parquet`` and the run goes on.

    Args:
        path: the video file.
        cause: what is wrong with it, in a few words.
        advice: what the user can do about it.
    """

    def __init__(self, path: str, cause: str, advice: str) -> None:
        super().__init__(f"{path}: {cause}. {advice}")
        self.path, self.cause, self.advice = path, cause, advice

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        # An exception crosses process borders by calling its class with `args`, which holds the message alone.
        return type(self), (self.path, self.cause, self.advice)


class StorageError(L2AError):
    """A folder cannot be read or written: full, missing, or without permission."""


class StageError(L2AError):
    """A stage cannot start: what it reads is missing, or was made with other settings."""


class ClusterError(L2AError):
    """The Ray cluster has no CPU to offer, or nodes with other code of this project."""


class SelectorFileError(L2AError):
    """A Selector's files are missing, truncated, of another version or for other features."""


class ClassifierFileError(L2AError):
    """A classifier's folder lacks a file, or holds one that is damaged, of another format, or of another classifier."""


class MissingPackageError(L2AError):
    """An optional package that the settings ask for is not installed."""
