"""What the missing cells of a table will cost: each row and column measured on samples, each result counted once."""

from collections.abc import Sequence

from l2a_ray.experiments.grid import Cell
from l2a_ray.pipeline.results import closure
from l2a_ray.pipeline.stage import definition
from l2a_ray.planning.plan import Part, Plan, plan_parts
from l2a_ray.planning.sample import tests
from l2a_ray.storage.files import AnyPath


def plan_cells(cells: Sequence[Cell], folder: AnyPath) -> Plan:
    """Measure samples of what cells lack and return the plan of all, as plain values.

    The repetitions of a row and column share their samples; a result that several cells need counts once, for the
    first of them.

    Args:
        cells: some of which are missing.
        folder: samples lie in there, and are removed at the end.

    Raises:
        L2AError: as the stages' work, on a sample.
    """
    parts: dict[tuple[str, str], Part] = {}
    seen = set[str]()
    for cell in cells:
        part = parts.setdefault((cell.row, cell.column), Part(cell.pipeline, tests, [], set()))
        needed = set(cell.pipeline.results.needed([cell.result]))
        for stage in closure([cell.result]):
            if (name := definition(stage)) not in seen:
                seen.add(name)
                part.stages.append((cell.pipeline, stage))
                part.needed |= {stage} & needed
    plan = plan_parts([part for part in parts.values() if part.needed], folder)
    plan["assumptions"].append("one result after the other: as many hours, in less time, where a cluster makes several")
    return plan
