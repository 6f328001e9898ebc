"""What is recorded beside a result: it tells code from other code, without a repository too."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from l2a_ray.errors import SettingError
from l2a_ray.runtime.settings import RuntimeSettings
from l2a_ray.storage.provenance import code_digest, provenance

ROOT = Path(__file__).parents[1]
ASK = """
import json, sys
from l2a_ray.storage.provenance import provenance
print(json.dumps(provenance(3) | {"heavy": sorted({"ray", "torch"} & sys.modules.keys())}))
"""


def ask(root: Path) -> dict[str, object]:
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", ASK], cwd=root, env=environment, capture_output=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_copy_without_a_repository_is_told_by_its_code(tmp_path: Path) -> None:
    for name in ("l2a_ray", "envs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "--quiet", str(tmp_path.parent)], check=False)  # a repository of something else
    copied = ask(tmp_path)
    assert copied["commit"] is None and copied["code"] == code_digest() and copied["heavy"] == []
    assert copied["seed"] == 3 and copied["hardware"]["gpus"] is None  # type: ignore[index]
    (tmp_path / "envs" / "settings.py").write_text("# edited on one machine\n")
    assert ask(tmp_path)["code"] != copied["code"]


def test_what_is_recorded_is_json_and_repeatable() -> None:
    assert json.loads(json.dumps(provenance(None))) == provenance(None)


@pytest.mark.parametrize("size", [0, -1, float("nan")])
def test_an_object_store_has_a_size(size: float) -> None:
    with pytest.raises(SettingError, match="object_store_gib"):
        RuntimeSettings(object_store_gib=size)
