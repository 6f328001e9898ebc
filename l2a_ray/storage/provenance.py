"""What a result was made with beside its settings: code, versions, hardware. Imports no Ray."""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

OURS = ("l2a_ray", "envs")
PACKAGES = ("l2a-ray", "ray", "torch", "torchvision", "numpy", "av", "opencv-python-headless", "gymnasium")


def provenance(seed: int | None) -> dict[str, Any]:
    """Return, as JSON knows it, what may tell why two results differ.

    Args:
        seed: of what is made; None where nothing is drawn.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "code": code_digest(),
        "commit": commit(),
        "hardware": {
            "cpus": os.cpu_count(),
            "gpus": _gpus(),
            "machine": platform.machine(),
            "memory_gib": round(memory, 1),
        },
        "packages": {name: package_version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "seed": seed,
        "system": platform.system(),
    }


def code_digest() -> str:
    """Return a digest of this project's source files as this process would import them.

    In a cluster's job there is no repository that could name a commit.

    Raises:
        ModuleNotFoundError: it would not import one of the project's packages.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name in OURS:
        root = code_folder(name)
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{name}/{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def code_folder(package: str = OURS[0]) -> Path:
    """Return the folder that a package of this project would be imported from.

    Raises:
        ModuleNotFoundError: there is none.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {package}")
    return Path(spec.submodule_search_locations[0])


def commit() -> str | None:
    """Return the commit that this code was checked out at; None if it was not checked out, or git is not there."""
    repository, git = code_folder().parent, shutil.which("git")
    if git is None or not (repository / ".git").exists():  # else git names that of a repository around it
        return None
    command = [git, "-C", str(repository), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def package_version(name: str) -> str | None:
    """Return the version of an installed package; None if it is not installed, as this project in a cluster's job."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpus() -> list[str] | None:
    """Return the names of the GPUs that this process sees; None where PyTorch, which takes seconds, is not imported."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
