"""The exported Selector: two files that load without Ray, without RLlib and without pickle.

``selector.safetensors`` holds the network's weights (``selector.``) and its backbone's (``backbone.``), because a
Selector understands only the features of the backbone it was trained with. ``selector.json`` says what they are.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn, cast

import safetensors.torch
import torch
from safetensors import SafetensorError

from l2a_ray.classifier.settings import NetworkSettings
from l2a_ray.composites.settings import ALL_FRAMES, FrameSampling
from l2a_ray.errors import L2AError, SelectorFileError
from l2a_ray.pairs.settings import EmbeddingSettings, LabelEncoding
from l2a_ray.selector.find import METADATA, WEIGHTS
from l2a_ray.selector.network import SelectorNetwork
from l2a_ray.storage.files import AnyPath, read_bytes, write_bytes, write_json

VERSION = 1
ADDED = ("config", "backbone", "temporal")
"""Settings of the network that the first files do not name: there they are at their defaults."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Selector:
    """A trained Selector and all that is needed to score the pairs of any data set with it."""

    network: SelectorNetwork
    agreement: bool
    """Whether the last feature of a clip is its ``class_agreement``."""
    encoding: LabelEncoding
    """How the classes were turned into label vectors."""
    embedding: EmbeddingSettings
    """The sentence embedding of class names, used if the encoding is ``name``."""
    classes: tuple[str, ...] | None
    """The classes it was trained on, in the order of their labels, if the encoding is ``one_hot``; else None."""
    backbone: Mapping[str, torch.Tensor]
    """State dict of the classifier that computed the features."""
    backbone_settings: NetworkSettings
    """What that classifier is; its ``weights`` are not kept, as ``backbone`` takes their place."""
    backbone_classes: int
    """Number of classes of that classifier."""
    crop: int
    """Side, in pixels, of the centre crop that the features were computed on."""
    sampling: FrameSampling = ALL_FRAMES
    """Which of a clip's stored frames the features were computed on."""
    kept_step: int | None = None
    """The step of its training before which it had these weights; None: they are the last."""


def hash_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """Return a hash of a state dict's names and bytes (blake2b, 32 hex digits), whatever the order of its entries."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_selector(folder: AnyPath, selector: Selector) -> None:
    """Write a Selector's two files, each atomically, ``selector.json`` last.

    Raises:
        StorageError: the folder cannot be written.
    """
    parts = {"selector": selector.network.state_dict(), "backbone": selector.backbone}
    weights = {
        f"{part}.{name}": tensor.detach().cpu().contiguous()
        for part, state in parts.items()
        for name, tensor in state.items()
    }
    # An older Selector's metadata must not describe the new weights, even if we are stopped in between.
    (folder / METADATA).unlink(missing_ok=True)
    write_bytes(folder / WEIGHTS, safetensors.torch.save(weights))
    write_json(folder / METADATA, _metadata(selector))


def load_selector(folder: AnyPath) -> Selector:
    """Read a Selector, on the CPU.

    Raises:
        SelectorFileError: a file is missing, damaged or of another version, or the two do not fit each other.
    """
    metadata = _read_metadata(folder / METADATA)
    weights = _read_weights(folder / WEIGHTS)
    try:
        selector = _build(metadata, weights)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, L2AError) as error:
        cause = f"does not describe the weights in {WEIGHTS} ({type(error).__name__}: {error})"
        _refuse(folder / METADATA, cause, "Export the Selector again: its two files belong together", error)
    if hash_weights(selector.backbone) != metadata["backbone"]["hash"]:
        cause = f"its backbone is not the one that {METADATA} names: one of the two files was replaced or changed"
        _refuse(folder / WEIGHTS, cause, "Export the Selector again: its two files belong together")
    return selector


def check_classes(selector: Selector, classes: Sequence[str], folder: AnyPath) -> None:
    """Refuse to score pairs of other classes with a Selector that knows its own classes only.

    Args:
        selector: the Selector that was loaded from ``folder``.
        classes: the classes of the data to be scored, in the order of their labels.
        folder: named in the message.

    Raises:
        SelectorFileError: its labels are one-hot and the classes, or their order, are not those of its training.
    """
    if selector.classes is None or selector.classes == tuple(classes):
        return
    unknown = sorted(set(classes) - set(selector.classes))
    cause = "its labels are one-hot over other classes than the data's" + (
        f" (it does not know {', '.join(map(repr, unknown))})" if unknown else " (some are absent, or in another order)"
    )
    _refuse(folder / METADATA, cause, "Train a Selector whose label encoding is `name`: it can score any class")


def _metadata(selector: Selector) -> dict[str, Any]:
    network, backbone = selector.network, selector.backbone_settings
    return {
        "version": VERSION,
        "feature_size": network.feature_size,
        "label_size": network.label_size,
        "hidden": network.hidden,
        "agreement": selector.agreement,
        "encoding": selector.encoding,
        "embedding": asdict(selector.embedding),
        "classes": selector.classes,
        **({} if selector.kept_step is None else {"kept_step": selector.kept_step}),
        "backbone": {
            "name": backbone.name,
            "width": backbone.width,
            **{name: getattr(backbone, name) for name in ADDED},
            "classes": selector.backbone_classes,
            "crop": selector.crop,
            "frames": selector.sampling.count,
            "sampling": selector.sampling.kind,
            "hash": hash_weights(selector.backbone),
        },
    }


def _build(metadata: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> Selector:
    """Put a Selector together; whatever does not fit raises one of Python's or PyTorch's own errors."""
    backbone, classes = metadata["backbone"], metadata["classes"]
    if metadata["encoding"] not in ("one_hot", "name") or (metadata["encoding"] == "one_hot") != (classes is not None):
        raise ValueError("encoding must be one_hot, with classes, or name, without")
    # Sizes that do not fit are found before any memory of that size is asked for.
    with torch.device("meta"):
        network = SelectorNetwork(metadata["feature_size"], metadata["label_size"], metadata["hidden"])
    network.load_state_dict(_part(weights, "selector."), assign=True)
    return Selector(
        network=network,
        agreement=bool(metadata["agreement"]),
        encoding=cast(LabelEncoding, metadata["encoding"]),
        embedding=EmbeddingSettings(**metadata["embedding"]),
        classes=None if classes is None else tuple(classes),
        backbone=_part(weights, "backbone."),
        backbone_settings=NetworkSettings(
            name=backbone["name"],
            width=backbone["width"],
            **{name: backbone[name] for name in ADDED if name in backbone},
        ),
        backbone_classes=int(backbone["classes"]),
        crop=int(backbone["crop"]),
        kept_step=metadata.get("kept_step"),
        sampling=FrameSampling(count=backbone.get("frames"), kind=backbone.get("sampling", "segments")),
    )


def _part(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _read_metadata(path: AnyPath) -> dict[str, Any]:
    try:
        metadata = json.loads(read_bytes(path))
    except OSError as error:
        _refuse_missing(path, error)
    except ValueError as error:
        _refuse(path, f"is not JSON ({error})", "Export the Selector again, or copy the file again", error)
    if not isinstance(metadata, dict) or metadata.get("version") != VERSION:
        found = metadata.get("version") if isinstance(metadata, dict) else None
        cause = f"is of version {found!r}, and this program reads version {VERSION}"
        _refuse(path, cause, "Use the release of l2a-ray that wrote it, or train the Selector again")
    return metadata


def _read_weights(path: AnyPath) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(read_bytes(path))
    except OSError as error:
        _refuse_missing(path, error)
    except SafetensorError as error:
        _refuse(path, f"is truncated or damaged ({error})", "Export the Selector again, or copy the file again", error)


def _refuse_missing(path: AnyPath, error: OSError) -> NoReturn:
    cause = f"cannot be read ({error.strerror or error})"
    _refuse(path, cause, f"A Selector is a folder with {WEIGHTS} and {METADATA}; `l2a train-selector` writes it", error)


def _refuse(path: AnyPath, cause: str, advice: str, error: Exception | None = None) -> NoReturn:
    raise SelectorFileError(f"{path}: {cause}. {advice}") from error
