"""Any instance segmentation of mmdet 3.3, by its config and checkpoint.

Axes: T frames, N objects of a frame, H height, W width, C channel.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from l2a_ray.errors import SettingError
from l2a_ray.prepare.segment.base import Found
from l2a_ray.runtime import openmmlab

CONFIG, CHECKPOINT = "config", "checkpoint"


class MMDetDetector:
    """Finds objects and their masks by a model of mmdet.

    Args:
        config: path of its config, or the part of the path below mmdet's own configs. A config is a program and is run.
        checkpoint: file of its weights; None: random.
        device: where it runs; None: a GPU where there is one.

    Raises:
        MissingPackageError: mmdet is not installed, or the model needs an op that mmcv-lite lacks.
        SettingError: config or checkpoint cannot be used, or the model gives no masks.
    """

    def __init__(self, config: str, checkpoint: str | None, device: torch.device | str | None = None) -> None:
        settings = openmmlab.read_config("mmdet", config, CONFIG)
        model = openmmlab.build_model("mmdet", settings, config, CONFIG)
        meta = openmmlab.load_checkpoint(model, checkpoint, CHECKPOINT) if checkpoint is not None else {}
        self.classes = _class_names(settings, meta, config)
        self._model: Any = model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._pipeline = _pipeline(settings, config)
        # Whether there are masks is not in the config: only a run tells, and also whether all ops are there.
        sample = self._detect(np.zeros((1, 64, 64, 3), dtype=np.uint8))[0]
        if "pred_instances" not in sample or "masks" not in sample.pred_instances:
            reason = (
                "finds no masks of single objects. Name a config of instance segmentation (mask_rcnn, mask2former, ...)"
            )
            raise SettingError(CONFIG, config, reason)

    def __call__(self, frames_THWC: NDArray[np.uint8]) -> list[Found]:
        """Return what is found in each RGB frame, above the config's own ``score_thr``."""
        return [self._found(sample.pred_instances) for sample in self._detect(frames_THWC)]

    @torch.inference_mode()
    def _detect(self, frames_THWC: NDArray[np.uint8]) -> list[Any]:
        with openmmlab.scope("mmdet"):
            # Like OpenCV, mmdet's pipelines take BGR.
            images = [np.ascontiguousarray(frame[..., ::-1]) for frame in frames_THWC]
            packed = [self._pipeline({"img": image, "img_id": i}) for i, image in enumerate(images)]
            samples: list[Any] = self._model.test_step({key: [item[key] for item in packed] for key in packed[0]})
        return samples

    def _found(self, instances: Any) -> Found:
        return Found(
            class_N=self.classes[instances.labels.long().cpu().numpy()],  # SOLO's are float where it finds nothing
            score_N=instances.scores.float().cpu().numpy(),
            box_N4=instances.bboxes.float().cpu().numpy(),
            mask_NHW=torch.as_tensor(instances.masks).bool().cpu().numpy(),
        )


def _class_names(settings: Any, meta: dict[str, Any], config: str) -> NDArray[np.str_]:
    """Return the classes that the checkpoint notes; failing that, those of the config's test data."""
    from mmdet.registry import DATASETS

    noted = {key.lower(): value for key, value in {**meta, **meta.get("dataset_meta", {})}.items()}
    names = noted.get("classes")
    if names is None:
        data = settings.get("test_dataloader", {}).get("dataset", {})
        with openmmlab.scope("mmdet"):
            kind = DATASETS.get(data.get("type", ""))
        known = {**getattr(kind, "METAINFO", {}), **(data.get("metainfo") or {})}
        names = known.get("classes")
    if names is None:
        raise SettingError(CONFIG, config, "names no classes: set test_dataloader.dataset.metainfo.classes in it")
    return np.array([names] if isinstance(names, str) else names, dtype=np.str_)


def _pipeline(settings: Any, config: str) -> Any:
    """Return the config's steps for test images, for images in memory and without annotations."""
    from mmcv.transforms import Compose
    from mmdet.utils import get_test_pipeline_cfg

    try:
        steps = get_test_pipeline_cfg(settings)
    except (AttributeError, KeyError, RuntimeError) as error:
        raise SettingError(CONFIG, config, "has no test pipeline (test_dataloader.dataset.pipeline)") from error
    steps = [step for step in steps if "Annotations" not in str(step["type"])]
    steps[0]["type"] = "mmdet.LoadImageFromNDArray"
    with openmmlab.scope("mmdet"):
        return Compose(steps)
