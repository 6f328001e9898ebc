"""Starting Ray, quietly and on purpose, and getting one's own errors back out of it."""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import ray
import ray.data

from l2a_ray.errors import ClusterError, L2AError
from l2a_ray.runtime.cluster import Phase, check_cluster

logger = logging.getLogger(__name__)
# Of a Ray that we start on this machine. Data streams through it, so a small one is enough; Ray's own default, 30 % of
# the memory, would be filled with batches that training will not want for minutes.
OBJECT_STORE_BYTES = 2 * 2**30


@contextmanager
def ray_session(wanted: Sequence[Phase] = ()) -> Iterator[None]:
    """Connect to the cluster named by ``RAY_ADDRESS``, or start one on this machine; shut down only what was started.

    Inside a submitted job Ray itself sets ``RAY_ADDRESS``. A session that is there already is used as it is.

    Args:
        wanted: what is about to be asked of the cluster.

    Raises:
        ClusterError: nothing answers at that address.
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
        started = ray.init(
            address="local",  # never somebody else's Ray that happens to run here
            log_to_driver=False,
            logging_level=logging.WARNING,
            object_store_memory=OBJECT_STORE_BYTES,
        )
        if started.dashboard_url:
            logger.info("Ray's dashboard: http://%s (`ray get-auth-token`, if it asks)", started.dashboard_url)
    try:
        quieten()
        check_cluster(wanted)
        yield
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
