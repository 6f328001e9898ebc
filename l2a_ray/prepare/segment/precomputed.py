"""Segmenter that reads masks made elsewhere, one file or folder a video.

For ``.../<class>/<video>.mp4`` it looks below the folder of masks for ``<class>/<video>`` and then ``<video>``, each as

- ``.npz`` as J-HMDB's masks are kept: ``mask``, uint8 (T, H, ceil(W / 8)), bits packed along the width, and ``shape``,
  the true (T, H, W);
- ``.npz`` holding one array (T, H, W), or ``.npy``: bool or uint8, foreground wherever it is not 0;
- a folder of T images ``00000.png``, ``00001.png``, ... in this order, foreground wherever they are not black.

T is the number of frames that the video decodes to. Masks may have another resolution than the video, not another
aspect. Axes: T time, H height, W width.
"""

import io
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from l2a_ray.errors import SettingError, VideoError
from l2a_ray.prepare.segment.base import Instances, people
from l2a_ray.storage.files import AnyPath, as_path, read_bytes
from l2a_ray.videos.decode import Clip

_SUFFIXES = (".npz", ".npy", "")  # the last is a folder of images
_ASPECT_TOLERANCE = 0.1
_READ_ERRORS = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error)


class _MaskError(Exception):
    """What is wrong with a mask file."""


class PrecomputedSegmenter:
    """Every frame's mask is one instance, a person, of score 1; a frame whose mask is empty has none.

    Args:
        masks: the folder of masks.

    Raises:
        SettingError: it does not exist.
    """

    def __init__(self, masks: str) -> None:
        self._root = as_path(masks)
        if not self._root.is_dir():
            raise SettingError("masks", masks, "no such folder. Name the folder that holds the masks")

    def __call__(self, clip: Clip) -> Instances:
        """Take the masks of the clip's frames, cut as they are and resized to them.

        Raises:
            VideoError: the masks are missing, unreadable, of another length or of another aspect than the video.
        """
        path = self._find(clip.path)
        try:
            stored = _read(path, clip.indices_T, clip.frame_count)
            masks = _resize(_cut(stored, *clip.cut), *clip.frames_THWC.shape[1:3])
        except _MaskError as error:
            advice = "Make its masks again from this very file, one for each decoded frame"
            raise VideoError(clip.path, f"masks {path} {error}", advice) from error
        shown = np.flatnonzero(masks.any(axis=(1, 2)))
        return people(masks[shown], shown, np.ones(len(shown), np.float32), len(masks))

    def files(self, video: str) -> list[AnyPath]:
        """Return the files that a video's masks are read from, in order.

        Raises:
            VideoError: there are none.
        """
        path = self._find(video)
        return sorted(path.glob("*.png")) if path.is_dir() else [path]

    def _find(self, video: str) -> AnyPath:
        """Return the first place that holds this video's masks."""
        for name in _names(video):
            for suffix in _SUFFIXES:
                path = self._root / (name + suffix)
                if path.is_file() if suffix else path.is_dir():
                    return path
        advice = f"Add them as {_names(video)} (.npz, .npy or a folder of PNG images)"
        raise VideoError(video, f"no masks in {self._root}", advice)


def _names(video: str) -> tuple[str, str]:
    path = Path(video)
    return f"{path.parent.name}/{path.stem}", path.stem


def _read(path: AnyPath, indices: NDArray[np.int64], frame_count: int) -> NDArray[np.bool_]:
    """The masks of these frames, bool (T, H, W)."""
    try:
        if path.is_dir():
            return _read_images(sorted(path.glob("*.png")), indices, frame_count)
        content = np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)
        arrays = {"": content} if isinstance(content, np.ndarray) else dict(content)
    except _READ_ERRORS as error:
        raise _MaskError(f"cannot be read ({error})") from error
    if arrays.keys() == {"mask", "shape"}:
        return _unpack(arrays["mask"], arrays["shape"], indices, frame_count)
    if len(arrays) != 1:
        raise _MaskError(f"hold {sorted(arrays)} where one array, or 'mask' and 'shape', is expected")
    return _take(next(iter(arrays.values())), indices, frame_count)


def _read_images(paths: list[AnyPath], indices: NDArray[np.int64], frame_count: int) -> NDArray[np.bool_]:
    _check_length(len(paths), frame_count)
    images = [_read_image(paths[i]) for i in indices]
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise _MaskError(f"hold images of different sizes, (height, width) {sorted(sizes)}")
    return np.stack(images)


def _read_image(path: AnyPath) -> NDArray[np.bool_]:
    image = cv2.imdecode(np.frombuffer(read_bytes(path), np.uint8), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise _MaskError(f"hold an unreadable image, {path.name}")
    return image > 0


def _unpack(
    packed: NDArray[np.uint8], shape: NDArray[np.int64], indices: NDArray[np.int64], frame_count: int
) -> NDArray[np.bool_]:
    """Masks whose bits are packed along the width: uint8 (T, H, ceil(W / 8))."""
    if shape.shape != (3,) or packed.dtype != np.uint8:
        raise _MaskError("are not bit-packed: 'mask' must be uint8 and 'shape' three numbers")
    length, height, width = (int(side) for side in shape)
    if packed.shape != (length, height, -(-width // 8)):
        raise _MaskError(f"are not bit-packed: 'mask' is {packed.shape} for a 'shape' of {(length, height, width)}")
    _check_length(length, frame_count)
    return np.unpackbits(packed[indices], axis=-1, count=width).view(np.bool_)


def _take(masks_THW: NDArray[np.generic], indices: NDArray[np.int64], frame_count: int) -> NDArray[np.bool_]:
    if masks_THW.ndim != 3 or masks_THW.dtype not in (np.bool_, np.uint8):
        found = f"{masks_THW.dtype} {masks_THW.shape}"
        raise _MaskError(f"are {found} where bool or uint8 (time, height, width) is expected")
    _check_length(len(masks_THW), frame_count)
    return masks_THW[indices].astype(np.bool_)


def _check_length(length: int, frame_count: int) -> None:
    if length != frame_count:
        raise _MaskError(f"are of {length} frames, the video has {frame_count}")


def _cut(masks_THW: NDArray[np.bool_], of_height: float, of_width: float) -> NDArray[np.bool_]:
    """Cut these shares of the height and width from each side."""
    height, width = masks_THW.shape[1:]
    rows, columns = round(of_height * height), round(of_width * width)
    return masks_THW[:, rows : height - rows, columns : width - columns]


def _resize(masks_THW: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """Bring masks to the frames' size by nearest neighbour."""
    mask_height, mask_width = masks_THW.shape[1:]
    if 0 in (mask_height, mask_width) or abs(mask_width * height / (mask_height * width) - 1) > _ASPECT_TOLERANCE:
        raise _MaskError(f"are {mask_width} x {mask_height}, another aspect than the video's ({width} x {height} here)")
    return np.stack(
        [cv2.resize(mask.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) for mask in masks_THW]
    ).view(np.bool_)
