"""How settings are declared: wrong values are refused, and a key holds what its result depends on and nothing else."""

import math
import os
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.errors import SettingError, owned_by
from l2a_ray.fields import above, at_least, between, check, content_digest, plain, relevant, setting, within
from l2a_ray.pairs.settings import EmbeddingSettings, MatchSettings
from l2a_ray.prepare.inpaint.fill import InpaintSettings
from l2a_ray.prepare.segment.settings import DetectSettings, MotionSettings, SegmentSettings
from l2a_ray.runtime.tracking import TrackingSettings
from l2a_ray.videos.catalog import DataSettings
from l2a_ray.videos.decode import DecodeSettings


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of some settings."""

    size: int = 3
    speed: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Settings with all there is."""

    kind: Literal["file", "sum"] = "sum"
    mode: Literal["fast", 2] | None = None
    only: list[Literal["a", "b"]] = field(default_factory=list)
    share: float = 0.5
    scales: tuple[float, ...] = (1.0,)
    workers: int = setting(1, execution=True)
    model: str | None = setting(None, content=True, only_for={"kind": ["file"]})
    part: Part = field(default_factory=Part)
    other: Part | None = None

    def __post_init__(self) -> None:
        check(self, share=within(0, 1), workers=at_least(0, "processes"))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("kind", "sun", "must be one of file, sum"),
        ("kind", None, "must have a value"),
        ("share", None, "must have a value"),
        ("part", None, "must have a value"),
        ("mode", "slow", "must be one of fast, 2, None"),
        ("only", ["a", "c"], "must be some of a, b"),
        ("share", 1.5, "must be between 0 and 1"),
        ("share", math.nan, "must be finite"),
        ("share", math.inf, "must be finite"),
        ("scales", (1.0, -math.inf), "must be finite"),
        ("workers", -1, "must be at least 0 processes"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name_alone(name: str, value: Any, reason: str) -> None:
    with pytest.raises(SettingError) as caught:
        Whole(**{name: value})
    assert (caught.value.field, str(caught.value)) == (name, f"{name}={value!r}: {reason}")


def test_right_values_pass() -> None:
    for value in ({"mode": "fast"}, {"mode": 2}, {"only": ["b", "a"]}, {"share": 0}, {"share": 1.0}, {"workers": 0}):
        Whole(**value)
    assert (above(0)(0), above(0)(0.1)) == ("must be above 0", None)
    assert (between(0, 1)(1), between(0, 1)(0.5)) == ("must be above 0 and below 1", None)


def test_the_owner_adds_the_path() -> None:
    with pytest.raises(SettingError, match=r"^run\.whole\.kind='sun': must"), owned_by("run"), owned_by("whole"):
        Whole(kind="sun")  # type: ignore[arg-type]


CHOICES = [
    (DataSettings, "layout"),
    (DataSettings, "split"),
    (SegmentSettings, "kind"),
    (InpaintSettings, "kind"),
    (InpaintSettings, "spatial"),
    (MatchSettings, "kind"),
    (EmbeddingSettings, "kind"),
    (CompositeSettings, "kind"),
    (CompositeSettings, "region"),
    (CompositeSettings, "objects"),
]


@pytest.mark.parametrize(("settings", "name"), CHOICES, ids=lambda value: getattr(value, "__name__", value))
def test_a_misspelt_choice_is_refused(settings: type, name: str) -> None:
    with pytest.raises(SettingError, match=f"^{name}='maskrcn': must be one of"):
        settings(**{name: "maskrcn"})


NUMBERS = [
    (DataSettings, "val_fraction"),
    (SegmentSettings, "gpus_per_worker"),
    (DetectSettings, "score"),
    (DetectSettings, "mask"),
    (DetectSettings, "overlap"),
    (MotionSettings, "noise"),
    (InpaintSettings, "radius"),
    (MatchSettings, "min_foreground"),
    (CompositeSettings, "alpha"),
    (CompositeSettings, "mixup_alpha"),
    (CompositeSettings, "cutout_area"),
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize(("settings", "name"), NUMBERS, ids=lambda value: getattr(value, "__name__", value))
def test_numbers_out_of_range_are_refused(settings: type, name: str, value: float) -> None:
    with pytest.raises(SettingError, match=f"^{name}={value}"):
        settings(**{name: value})


def test_defaults_and_how_a_result_is_made_are_left_out() -> None:
    assert relevant(Whole()) == relevant(Whole(workers=8, share=0.5)) == {}
    changed = Whole(share=0.25, scales=(2.0, 3.0), part=Part(size=4))
    assert relevant(changed) == {"share": 0.25, "scales": [2.0, 3.0], "part.size": 4}
    assert relevant(Whole(part=Part(size=4)), "whole.") == {"whole.part.size": 4}


def test_a_part_that_is_there_differs_from_none_even_at_its_defaults() -> None:
    assert relevant(Whole(other=Part())) != relevant(Whole())
    assert relevant(Whole(other=Part(size=4)))["other.size"] == 4


def test_a_field_that_comes_later_changes_nothing_at_its_default() -> None:
    later = make_dataclass("Later", [("more", int, 5)], bases=(Whole,), frozen=True, kw_only=True)
    assert relevant(later(share=0.25)) == relevant(Whole(share=0.25))
    assert relevant(later(share=0.25, more=6)) != relevant(Whole(share=0.25))


def test_what_belongs_to_another_kind_is_left_out(tmp_path: Path) -> None:
    assert relevant(Whole(model=str(tmp_path / "no.bin"))) == {}
    assert relevant(Whole(kind="file", model="a-name")) == {"kind": "file", "model": "a-name"}
    contrast = MotionSettings(contrast=30)
    assert relevant(SegmentSettings(motion=contrast)) == {}
    assert relevant(SegmentSettings(kind="motion", motion=contrast)) == {"kind": "motion", "motion.contrast": 30}
    score = DetectSettings(score=0.7)
    assert relevant(SegmentSettings(kind="motion", detect=score)) == {"kind": "motion"}
    assert relevant(SegmentSettings(detect=score)) == {"detect.score": 0.7}
    assert relevant(InpaintSettings(kind="torchscript", model="m.pt", radius=9.0)) == {
        "kind": "torchscript",
        "model": "m.pt",
    }
    assert relevant(CompositeSettings(kind="mixup", alpha=9.0, mixup_alpha=0.3)) == {
        "kind": "mixup",
        "mixup_alpha": 0.3,
    }
    assert relevant(CompositeSettings(mix_labels=False, alpha=9.0)) == {"mix_labels": False}
    assert relevant(MatchSettings(kind="random", embedding=EmbeddingSettings(kind="sent2vec", model="a"))) == {
        "kind": "random"
    }


def test_how_clips_are_made_is_left_out() -> None:
    assert relevant(SegmentSettings(gpus_per_worker=0.5, detect=DetectSettings(batch_size=2))) == {}
    assert relevant(DataSettings(max_failures=9)) == {}
    assert relevant(TrackingSettings()) == {}
    assert relevant(DecodeSettings(frames=16)) == {"frames": 16}


def test_the_content_of_a_file_counts_and_not_its_path(tmp_path: Path) -> None:
    def of(path: Path, content: str) -> dict[str, Any]:
        path.write_text(content)
        return relevant(SegmentSettings(weights=str(path)))

    first = of(tmp_path / "a.pth", "weights")
    assert first == of(tmp_path / "b.pth", "weights") and str(tmp_path) not in str(first)
    assert first != of(tmp_path / "a.pth", "other weights") != {}
    assert relevant(SegmentSettings(weights="COCO_V1")) == {}
    assert relevant(SegmentSettings(weights=str(tmp_path / "no.pth"))) == {"weights": str(tmp_path / "no.pth")}


def test_a_file_is_read_once_as_long_as_it_stays_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    def noted(path: Path) -> Any:
        opened.append(path)
        return path.open("rb")

    monkeypatch.setattr("l2a_ray.fields.open_file", noted)
    path = tmp_path / "a.pth"
    path.write_text("weights")
    first = content_digest(str(path))
    assert first == content_digest(str(path)) and opened == [path]
    path.write_text("WEIGHTS")
    os.utime(path, (0, 0))  # another time than before, however coarse the clock
    assert content_digest(str(path)) != first and opened == [path, path]


def test_settings_become_what_json_knows() -> None:
    assert plain({"a": [Part(size=2)], "b": (1, 2)}) == {"a": [{"size": 2, "speed": 1.0}], "b": [1, 2]}
