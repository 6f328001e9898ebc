"""Where a Selector lies; apart from reading it, which loads PyTorch."""

from l2a_ray.errors import SelectorFileError, StageError
from l2a_ray.storage.files import AnyPath
from l2a_ray.storage.run import find_result

WEIGHTS = "selector.safetensors"
METADATA = "selector.json"


def find_selector(folder: AnyPath) -> tuple[AnyPath, AnyPath]:
    """Return the two files of a Selector, ``WEIGHTS`` and ``METADATA``.

    Args:
        folder: holds them, or is the folder of a run that has trained one; of several the first is taken.

    Raises:
        SelectorFileError: they are not there.
    """
    place = folder
    if not (folder / METADATA).is_file():
        try:
            place = find_result(folder, "train-selector")
        except StageError as error:
            reason = "is neither a Selector's folder nor a run that has one"
            raise SelectorFileError(f"{folder}: {reason} ({error})") from error
    return place / WEIGHTS, place / METADATA
