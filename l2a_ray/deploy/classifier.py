"""A trained classifier as a folder, and what it says of videos. Imports no Ray.

Axes: N clips, T time, H height, W width, C channel, L classes.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn, cast

import numpy as np
import torch
from numpy.typing import NDArray

from l2a_ray.classifier.evaluation import average
from l2a_ray.classifier.features import look_at
from l2a_ray.classifier.network import Network
from l2a_ray.classifier.settings import CENTRE, MMACTION, Looks, NetworkSettings
from l2a_ray.classifier.step import predict
from l2a_ray.classifier.zoo import load_network
from l2a_ray.composites.settings import ALL_FRAMES, FrameSampling
from l2a_ray.config.building import build
from l2a_ray.errors import ClassifierFileError, L2AError, SettingError, VideoError
from l2a_ray.storage.files import AnyPath, as_path, read_bytes, write_bytes, write_json
from l2a_ray.videos.decode import decode
from l2a_ray.videos.settings import DecodeSettings

WEIGHTS, METADATA = "model.safetensors", "model.json"
FORMAT = 1
_BATCH = 32  # clips in memory
_READERS = 4  # threads: PyAV decodes without Python's lock
Videos = str | AnyPath | Sequence[str | AnyPath]


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained classifier.

    Args:
        network: in eval mode.
        classes: their names, in the order of the probabilities.
        decode: how a video becomes a clip.
        crop: side of the square that is cut out of a clip, pixels.
        about: all that ``model.json`` says: where it comes from, and what it was worth on D_val.
        sampling: which frames of a clip the network sees at once.
        looks: the views of each video or clip, whose probabilities are averaged.
    """

    network: Network
    classes: tuple[str, ...]
    decode: DecodeSettings
    crop: int
    about: Mapping[str, Any]
    sampling: FrameSampling = ALL_FRAMES
    looks: Looks = CENTRE

    @property
    def frames(self) -> int:
        """Frames that the network sees at once."""
        return self.sampling.count or self.decode.frames

    def __call__(self, videos: Videos | NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probabilities of the classes: (L,) of one video or clip, (N, L) of several.

        Args:
            videos: a video's path or URI, or several; or RGB clips, uint8 (T, H, W, C) or (N, T, H, W, C), with as many
                frames as ``decode.frames`` and a short side of at least ``crop``.

        Raises:
            SettingError: of ``crop``: the clips are smaller.
            ValueError: the clips are of another form.
            VideoError: a video cannot be used. :meth:`each` goes on with the others.
        """
        if isinstance(videos, np.ndarray):
            one, found = videos.ndim == 4, self._of_clips(videos[None] if videos.ndim == 4 else videos)
        else:
            one = isinstance(videos, str) or not isinstance(videos, Sequence)
            found = self._of_videos(cast(Sequence[str | AnyPath], [videos] if one else videos))
        return cast(NDArray[np.float32], found[0]) if one else found

    def _of_videos(self, videos: Sequence[str | AnyPath]) -> NDArray[np.float32]:
        rows = np.empty((len(videos), len(self.classes)), np.float32)
        for row, (_, found) in zip(rows, self.each(videos), strict=True):
            if isinstance(found, VideoError):
                raise found
            row[:] = found
        return rows

    def each(self, videos: Sequence[str | AnyPath]) -> Iterator[tuple[str, NDArray[np.float32] | VideoError]]:
        """Yield each video's name with its probabilities (L,), or with the reason why it cannot be used."""
        with ThreadPoolExecutor(_READERS) as readers:
            for start in range(0, len(videos), _BATCH):
                names = [str(video) for video in videos[start : start + _BATCH]]
                read = list(readers.map(self._read, names))
                clips = [clip for clip in read if not isinstance(clip, VideoError)]
                found = iter(self._probabilities(clips) if clips else ())
                for name, clip in zip(names, read, strict=True):
                    yield name, clip if isinstance(clip, VideoError) else next(found)

    def _read(self, path: str) -> NDArray[np.uint8] | VideoError:
        try:
            return look_at(decode(path, self.decode).frames_THWC, self.crop, self.sampling, self.looks)
        except VideoError as error:
            return error
        except (L2AError, ValueError, RuntimeError, OSError) as error:  # as when videos are prepared
            return VideoError(path, f"{type(error).__name__}: {error}", "Convert the video anew, or leave it out")

    def _of_clips(self, clips_NTHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        if clips_NTHWC.dtype != np.uint8 or clips_NTHWC.ndim != 5 or clips_NTHWC.shape[1::3] != (self.decode.frames, 3):
            form = f"must be uint8, of {self.decode.frames} frames (T, H, W, 3) or several such clips (N, T, H, W, 3)"
            raise ValueError(f"clips {form}, not {clips_NTHWC.dtype} {clips_NTHWC.shape}")
        if not len(clips_NTHWC):
            return np.empty((0, len(self.classes)), np.float32)
        return self._probabilities([look_at(clip, self.crop, self.sampling, self.looks) for clip in clips_NTHWC])

    def _probabilities(self, views: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Return the probabilities of the classes (N, L) of N clips' views, (V, T, crop, crop, C) each."""
        logits = predict(self.network, torch.from_numpy(np.concatenate(views)), _BATCH).double()
        mean = average(logits.numpy().reshape(len(views), self.looks.views, -1))
        found: NDArray[np.float32] = torch.from_numpy(mean).softmax(dim=1).float().numpy()
        return found


def save_classifier(
    folder: AnyPath,
    weights: AnyPath,
    network: NetworkSettings,
    classes: Sequence[str],
    decode: DecodeSettings,
    crop: int,
    about: Mapping[str, Any],
    sampling: FrameSampling = ALL_FRAMES,
    looks: Looks = CENTRE,
) -> None:
    """Write what :func:`load_classifier` reads: ``model.safetensors`` and, last, ``model.json``.

    Args:
        folder: to write to.
        weights: of the trained network, as ``save_network`` wrote them.
        network: which network that is.
        classes: names in the order of the labels.
        decode: how its clips were read.
        crop: side of the square that it sees, pixels.
        about: where it comes from, as JSON knows it.
        sampling: which of the clips' frames it sees at once.
        looks: the views of a video that are to be averaged.

    Raises:
        StorageError: the weights are missing or of another network, or the folder cannot be written.
    """
    loaded = load_network(weights, network, len(classes), torch.device("cpu"))
    content = read_bytes(weights)
    (folder / METADATA).unlink(missing_ok=True)  # older metadata must not describe new weights
    write_bytes(folder / WEIGHTS, content)
    metadata = {
        "format": FORMAT,
        "network": asdict(replace(network, weights=None).with_absolute_paths()),
        "classes": list(classes),
        "decode": asdict(decode),
        "crop": crop,
        "sampling": asdict(sampling),
        "evaluate": asdict(looks),
        "mean": (loaded.mean.flatten() / 255).tolist(),
        "std": (1 / (255 * loaded.scale.flatten())).tolist(),
        "digest": _digest(content),
    }
    write_json(folder / METADATA, metadata | dict(about))


def load_classifier(
    folder: str | AnyPath, device: str | torch.device | None = None, trust_config: bool = False
) -> Classifier:
    """Load the classifier that a run has left in ``runs/NAME/model``, or a copy of that folder.

    Args:
        folder: path or URI of it.
        device: where it is to run, as "cpu"; None: on this process's GPU, if it has one.
        trust_config: run the config that describes a network of mmaction2: it is a program, so only one of someone
            you trust.

    Raises:
        ClassifierFileError: a file is missing, damaged, or of another format, or the two do not belong together; or the
            network is of mmaction2 and its config is not trusted.
        MissingPackageError: the network's package is not installed.
    """
    place = as_path(folder)
    metadata = _read_metadata(place / METADATA)
    try:
        network = build(NetworkSettings, metadata["network"])
        decode = build(DecodeSettings, metadata["decode"])
        sampling = build(FrameSampling, metadata["sampling"])
        looks = build(Looks, metadata["evaluate"])
        classes, crop, digest = tuple(map(str, metadata["classes"])), int(metadata["crop"]), metadata["digest"]
    except (KeyError, TypeError, ValueError, SettingError) as error:
        cause = f"does not describe a classifier ({type(error).__name__}: {error})"
        _refuse(place / METADATA, cause, "Copy the whole folder again, or run `l2a recommend`", error)
    try:
        if _digest(read_bytes(place / WEIGHTS)) != digest:
            _refuse(place / WEIGHTS, f"is not the file that {METADATA} describes", "The two belong together")
    except OSError as error:
        _refuse(place / WEIGHTS, f"cannot be read ({error})", "Copy the whole folder again", error)
    if network.name == MMACTION and not trust_config:
        cause = f"its network is built by {network.config}, a program of whoever made the folder"
        _refuse(place / METADATA, cause, "trust_config=True runs it")
    target = None if device is None else torch.device(device)
    loaded = load_network(place / WEIGHTS, network, len(classes), target).eval()
    return Classifier(loaded, classes, decode, crop, metadata, sampling, looks)


def _read_metadata(path: AnyPath) -> dict[str, Any]:
    advice = "A classifier's folder is runs/NAME/model, which `l2a run` and `l2a recommend` write"
    try:
        metadata = json.loads(read_bytes(path))
    except OSError as error:
        _refuse(path, f"cannot be read ({error.strerror or error})", advice, error)
    except ValueError as error:
        _refuse(path, f"is not JSON ({error})", advice, error)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        found = metadata.get("format") if isinstance(metadata, dict) else None
        cause = f"is of format {found!r}, this program reads {FORMAT}"
        _refuse(path, cause, "Use the release of l2a-ray that wrote it")
    return metadata


def _digest(content: bytes) -> str:
    return f"blake2b:{hashlib.blake2b(content, digest_size=16).hexdigest()}"


def _refuse(path: AnyPath, cause: str, advice: str, error: L2AError | Exception | None = None) -> NoReturn:
    raise ClassifierFileError(f"{path}: {cause}. {advice}") from error
