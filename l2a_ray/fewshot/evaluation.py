"""What a learner does in episodes, on features that are there already. Imports no Ray.

Axes: E episodes, W ways, S supports of a class, Q queries of a class, R queries of an episode, N rows of the bank of
features, T frames, F features of a frame.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2a_ray.fewshot.episodes import Rows
from l2a_ray.fewshot.prototypes import prototype_logits
from l2a_ray.fewshot.trx import TrxHead, Tuples, trx_logits

Logits = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes rows of queries (B, R) and of supports (B, W, M) and which of these are there; returns logits (B, R, W)."""
CHUNK = 2**22
"""Numbers that a chunk of episodes may compare at a time."""


def by_prototypes(bank_NTF: NDArray[np.float32]) -> Logits:
    """Return the learner of prototypes: a clip is the mean of its frames' features."""
    bank_NF = torch.from_numpy(bank_NTF).mean(dim=1)

    def logits(queries_BR: Tensor, supports_BWM: Tensor, there_BWM: Tensor) -> Tensor:
        return prototype_logits(bank_NF, queries_BR, supports_BWM, there_BWM)

    return logits


def by_trx(head: TrxHead, bank_NTF: NDArray[np.float32], batch: int = 256) -> Logits:
    """Return TRX: keys and values of every row are computed once, whatever the number of episodes."""
    head.eval()
    with torch.inference_mode():
        parts = [head.project(part) for part in torch.split(torch.from_numpy(bank_NTF), batch)]
    bank = [Tuples(*(torch.cat([part[n][m] for part in parts]) for m in (0, 1))) for n in range(len(parts[0]))]

    def logits(queries_BR: Tensor, supports_BWM: Tensor, there_BWM: Tensor) -> Tensor:
        queries = [Tuples(one.keys[queries_BR], one.values[queries_BR]) for one in bank]
        supports = [Tuples(one.keys[supports_BWM], one.values[supports_BWM]) for one in bank]
        return trx_logits(queries, supports, there_BWM)

    return logits


def accuracies(
    logits: Logits, queries_EWQ: Rows, supports_EWS: Rows, there_EWS: NDArray[np.bool_], cost: int
) -> NDArray[np.float32]:
    """Return the share of each episode's queries that are given to their class, (E,); equal logits count for none.

    Args:
        logits: of the learner.
        queries_EWQ: rows of the queries in the bank.
        supports_EWS: rows of the supports.
        there_EWS: which of these count.
        cost: numbers that a query and a support are compared by, for the size of chunks.
    """
    count, way, queries = queries_EWQ.shape
    chunk = max(1, CHUNK // (cost * way * queries * way * supports_EWS.shape[2]))
    found = np.empty(count, np.float32)
    with torch.inference_mode():
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            rows = torch.from_numpy(queries_EWQ[part].reshape(-1, way * queries))
            scores = logits(rows, torch.from_numpy(supports_EWS[part]), torch.from_numpy(there_EWS[part]))
            scores = scores.reshape(-1, way, queries, way)
            own = scores.diagonal(dim1=1, dim2=3).transpose(1, 2)  # (B, W, Q)
            right = (scores >= own[..., None]).sum(dim=-1) == 1
            found[part] = right.float().mean(dim=(1, 2)).numpy()
    return found
