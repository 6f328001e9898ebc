"""Making results so that a failure is an answer: one cell's must not end the table."""

import logging
from collections.abc import Sequence

from l2a_ray.errors import L2AError
from l2a_ray.pipeline.results import Results, make_together
from l2a_ray.pipeline.stage import Stage

logger = logging.getLogger(__name__)


def attempt(wanted: Sequence[tuple[Results, Sequence[Stage]]]) -> str | None:
    """Make results together, as :func:`make_together` does; return why they failed, if they did."""
    try:
        make_together(wanted)
    except L2AError as error:
        return str(error)
    except Exception as error:  # whatever a library raises, other cells may not meet it
        logger.exception("table: not one of l2a's own errors")
        return f"{type(error).__name__}: {error}"
    return None
