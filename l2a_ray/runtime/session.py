"""Starting Ray, quietly and on purpose, and getting one's own errors back out of it."""

import logging
import os
import socket
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import ray
import ray.data

from l2a_ray.errors import ClusterError, L2AError
from l2a_ray.runtime.cluster import Phase, check_cluster
from l2a_ray.runtime.settings import RuntimeSettings
from l2a_ray.runtime.streams import close_all

logger = logging.getLogger(__name__)
STARTS = 5
"""How often a Ray of our own is started before its time-outs are believed."""


@contextmanager
def ray_session(wanted: Sequence[Phase] = (), settings: RuntimeSettings | None = None) -> Iterator[None]:
    """Connect to the cluster named by ``RAY_ADDRESS``, or start one on this machine; shut down only what was started.

    Inside a submitted job Ray itself sets ``RAY_ADDRESS``. A session that is there already is used as it is.

    Args:
        wanted: what is about to be asked of the cluster.
        settings: of a Ray that is started here.

    Raises:
        ClusterError: nothing answers at that address, or this machine is too busy to start a Ray.
        SettingError, ClusterError: the cluster cannot do it (``check_cluster``).
    """
    if ray.is_initialized():
        check_cluster(wanted)
        yield
        return
    # Read when Ray Train starts its controller: generation 2 is what RAY_TRAIN_V2_ENABLED names.
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # Ray's own 15 starves those who make samples where the training beside them runs in the command's own process.
    os.environ.setdefault("RAY_worker_niceness", "0")
    if address := os.environ.get("RAY_ADDRESS"):
        _refuse_silence(address)
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    else:
        _start({"object_store_memory": round((settings or RuntimeSettings()).object_store_gib * 2**30)})
    with _ended():
        check_cluster(wanted)
        yield


@contextmanager
def own_ray(**options: Any) -> Iterator[None]:
    """Start a Ray on this machine with options of `ray.init`, and end it."""
    _start(options)
    with _ended():
        yield


def _start(options: dict[str, Any]) -> None:
    """Start a Ray on this machine; on a busy one, its processes may need more time than Ray gives them.

    Raises:
        ClusterError: it timed out ``STARTS`` times.
    """
    # "local": never somebody else's Ray that happens to run here
    fixed: dict[str, Any] = {"address": "local", "log_to_driver": False, "logging_level": logging.WARNING}
    for attempt in range(1, STARTS + 1):
        try:
            started = ray.init(**fixed, **options)
        except Exception as error:  # Ray's time-outs have no class of their own
            _end_half_started(error)
            if "timed out" not in str(error).lower():
                raise
            logger.warning("Ray has not started (attempt %d of %d): %s", attempt, STARTS, error)
            failure = error
            continue
        if started.dashboard_url:
            logger.info("Ray's dashboard: http://%s (`ray get-auth-token`, if it asks)", started.dashboard_url)
        return
    advice = "Is this machine busy with other work? Try again when it is not, or name a cluster by RAY_ADDRESS"
    raise ClusterError(f"Ray has not started in {STARTS} attempts ({failure}). {advice}") from failure


def _end_half_started(error: Exception) -> None:
    """End the processes of a Ray that did not start; Ray knows them only if it got as far as to connect."""
    ray.shutdown()
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, ray._private.node.Node):
            node.kill_all_processes(check_alive=False, allow_graceful=False)


@contextmanager
def _ended() -> Iterator[None]:
    """Use the Ray that has started, and shut it down at the end, after all that still reads from it."""
    try:
        quieten()
        yield
    finally:
        try:
            close_all()
        finally:
            ray.shutdown()


def _refuse_silence(address: str) -> None:
    """Ray itself tries for ten minutes and more to reach a cluster that is not there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:  # auto, local
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        advice = "Start it, correct the address (host:port), or unset RAY_ADDRESS to work on this machine"
        raise ClusterError(f"RAY_ADDRESS={address}: no Ray answers there ({error}). {advice}") from error


def quieten() -> None:
    """Leave the progress bars to us: Ray Data's own would fight them for the terminal."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)


def raise_cause(error: BaseException) -> NoReturn:
    """Raise the L2AError that a Ray task or actor died of; any other error as it is."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, L2AError):
            raise cause from None
        cause = getattr(cause, "cause", None) or cause.__cause__
    raise error
