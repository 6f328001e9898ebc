"""Draw the same pair under every switch of the paper's Table 2 and under the rivals' mixes: docs/images/mixes.png.

    python benchmarks/mixes.py [--out docs/images/mixes.png]

The pair is drawn by the demo's generator and decoded, segmented by motion and inpainted as `prepare` does it. Over
each row stands the file in configs/composite, and the share lambda of the foreground's label.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import yaml
from matplotlib.figure import Figure

from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.mixes import mix
from l2a_ray.prepare.inpaint.fill import InpaintSettings, inpaint
from l2a_ray.prepare.segment import SegmentSettings, build_segmenter
from l2a_ray.prepare.store import StoredClip
from l2a_ray.videos.decode import DecodeSettings, decode
from l2a_ray.videos.generate import GenerateSettings, generate

CONFIGS = Path(__file__).parents[1] / "configs" / "composite"
COLUMNS, TIMES = 3, 3


def prepared(video: Path) -> StoredClip:
    clip = decode(str(video), DecodeSettings(frames=8, size=112))
    planes = build_segmenter(SegmentSettings(kind="motion"))(clip).planes()
    return StoredClip(clip.frames_THWC, inpaint(clip.frames_THWC, planes.objects, InpaintSettings()), planes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images/mixes.png"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = GenerateSettings(width=160, height=112, train_per_class=1, test_per_class=1)
        generate(Path(folder) / "videos", size, seed=3)
        front, back = (prepared(next(Path(folder).glob(f"videos/train/{name}/*.mp4"))) for name in ("kick", "jump"))
    names = ["learn2augment", *sorted(path.stem for path in CONFIGS.glob("*.yaml"))]
    figure = Figure(figsize=(4.6 * COLUMNS, 1.35 * -(-len(names) // COLUMNS)), layout="constrained")
    panels = figure.subplots(-(-len(names) // COLUMNS), COLUMNS).flatten()
    for ax in panels:
        ax.set_axis_off()
    for ax, name in zip(panels, names, strict=False):  # the last row may not be full
        path = CONFIGS / f"{name}.yaml"
        settings = CompositeSettings(**(yaml.safe_load(path.read_text()) if path.is_file() else {}))
        mixed = mix(front.parts, back.parts, settings, np.random.default_rng(1))
        shown = np.linspace(0, len(mixed.frames_THWC) - 1, TIMES).astype(int)
        ax.imshow(np.concatenate([mixed.frames_THWC[t] for t in shown], axis=1), interpolation="lanczos")
        ax.set_title(f"{name}, λ = {mixed.weight:.2f}", fontsize=10)
    figure.savefig(arguments.out, dpi=80)


if __name__ == "__main__":
    main()
