"""All settings in one place."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from l2a_ray.config.settings import Settings

WITHOUT_CONFIG = Path(__file__).parent / "without_config.yaml"
"""The settings of who names no file."""


def load(*files: str | Path, **changes: Any) -> "Settings":
    """Read settings as the command line does: ``load("configs/demo.yaml", **{"classifier.epochs": 5})``.

    Args:
        files: YAML files; what a later one says counts.
        changes: values by their dotted names; they count more than the files.

    Raises:
        ConfigError: a file cannot be read, or holds a name that is no setting, a name twice or a value of another type.
        SettingError: a setting has a value that cannot work.
    """
    from l2a_ray.config import loading  # here: reading a part's settings alone need not wait for all the others

    return loading.load(*files, **changes)
