"""Who lies in whose ball, decided as the definition decides it, ties and copies included.

The balls of precision, recall, density and coverage reach to a neighbour: a copy of that neighbour
lies on the edge, and a copy of the centre at distance 0. Products of matrices are fast and leave
rounding errors in both. So they decide only what lies outside the bound of their error. The pairs
that are left, about one in 10,000, are compared by sums of squared differences in float64. These
are 0 for equal images, and the same wherever a pair stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

BLOCK = 512  # rows of a block of distances: bounds memory, not results
ELEMENTS = 1 << 22  # of differences taken at once
MANY = 32  # pairs left open for each row: beyond that, products in float64 decide more of them


class Points:
    """Feature vectors (N, D) without their repetitions.

    rows: (U, D), each different. number: (U,), how many images each stands for. index: (N,), the
    row of each image.
    """

    def __init__(self, features: np.ndarray) -> None:
        found: dict[bytes, int] = {}
        # Adding 0 turns -0 into 0, so that equal vectors have equal bytes.
        index = [found.setdefault((row + 0).tobytes(), len(found)) for row in features]
        self.index = np.array(index)
        self.rows = np.asarray(features)[np.unique(self.index, return_index=True)[1]]
        self.number = np.bincount(self.index)


class Space:
    """A common shift and scale of some sets, which leave float32 products the most digits."""

    def __init__(self, *sets: Points) -> None:
        self.centre = np.mean([s.rows.mean(axis=0, dtype=np.float64) for s in sets], axis=0)
        largest = max(
            float(np.abs(rows - self.centre).max()) for s in sets for rows in _blocks(s.rows)
        )
        # A power of two: dividing by it rounds nothing.
        self.scale = 2.0 ** np.ceil(np.log2(largest)) if largest else 1.0

    def squared_radii(self, points: Points, neighbours: int) -> np.ndarray:
        """Squared distance of each row of `points` to its k-th nearest image, (U,) float64.

        The row itself does not count, its copies do. Needs k + 1 images.
        """
        wanted = neighbours + 1  # the row itself is the nearest
        everything = self._placed(points.rows, np.float32)
        radii = []
        for start in range(0, len(points.rows), BLOCK):
            rows = points.rows[start : start + BLOCK]
            bounds = self._bounds(rows, everything)
            row, column = np.nonzero(_reaching(bounds, wanted))
            if len(row) > MANY * len(rows):
                precise = self._bounds(rows, self._placed(points.rows, np.float64))
                row, column = np.nonzero(_reaching(precise, wanted))
            squared = _squared(rows, row, points.rows, column)
            order = np.lexsort((squared, row))
            row, squared = row[order], squared[order]
            ranks = np.cumsum(points.number[column[order]])
            before = np.concatenate([[0], ranks])[np.searchsorted(row, np.arange(len(rows)))]
            reached = np.flatnonzero(ranks - before[row] >= wanted)
            radii.append(squared[reached[np.searchsorted(row[reached], np.arange(len(rows)))]])
        return np.concatenate(radii)

    def inside(
        self, points: Points, centres: Points, squared_radii: np.ndarray, *, closed: bool
    ) -> Iterator[np.ndarray]:
        """Yield, block by block of the rows of `points`, (B, U) whether each lies in each ball.

        squared_radii: (U,), those of the balls around the rows of `centres`. closed: whether the
        edge belongs to a ball.
        """
        everything = self._placed(centres.rows, np.float32)
        for rows in _blocks(points.rows):
            result, unsure = self._decided(self._bounds(rows, everything), squared_radii)
            if unsure.sum() > MANY * len(rows):
                precise = self._bounds(rows, self._placed(centres.rows, np.float64))
                result, unsure = self._decided(precise, squared_radii)
            row, column = np.nonzero(unsure)
            squared = _squared(rows, row, centres.rows, column)
            compare = np.less_equal if closed else np.less
            result[row, column] = compare(squared, squared_radii[column])
            yield result

    def _placed(self, rows: np.ndarray, dtype: type) -> np.ndarray:
        """Rows (U, D), shifted and scaled."""
        placed = np.empty(rows.shape, dtype)
        for start in range(0, len(rows), BLOCK):
            placed[start : start + BLOCK] = (rows[start : start + BLOCK] - self.centre) / self.scale
        return placed

    def _bounds(self, rows: np.ndarray, others: np.ndarray) -> _Bounds:
        """Bounds on the scaled squared distances of rows (B, D) to placed others (U, D), (B, U).

        A product of D terms is within D u |x| |y| of the exact one, u the unit roundoff (Higham
        2002, eq. 3.5); 16 u covers the rounding of the vectors and the few sums after it. The
        last term is for numbers too small to be normal.
        """
        limits = np.finfo(others.dtype)
        mine = self._placed(rows, others.dtype.type)
        width = rows.shape[1]
        norms = _norms(mine)[:, None] + _norms(others)
        error = (width + 16) * (limits.eps / 2) * norms + 4 * width * limits.tiny
        middle = norms - 2 * (mine @ others.T)
        return _Bounds(middle - error, middle + error)

    def _decided(self, bounds: _Bounds, squared_radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether points (B,) are inside balls (U,), and where the bounds do not tell, (B, U)."""
        radii = (squared_radii / self.scale**2).astype(bounds.lower.dtype)
        infinity = radii.dtype.type(np.inf)  # one step each way: the radii were rounded
        inside = bounds.upper < np.nextafter(radii, -infinity)
        unsure = (bounds.lower <= np.nextafter(radii, infinity)) & ~inside
        return inside, unsure


class _Bounds(NamedTuple):
    """Lower and upper bounds on squared distances, (B, U) each."""

    lower: np.ndarray
    upper: np.ndarray


def _reaching(bounds: _Bounds, wanted: int) -> np.ndarray:
    """(B, U): which pairs may be among the `wanted` nearest of their row."""
    lower = torch.from_numpy(bounds.lower)
    nearest = lower.topk(min(wanted, lower.shape[1]), dim=1, largest=False).indices
    # So many lie at most this far away.
    limit = torch.from_numpy(bounds.upper).gather(1, nearest).amax(dim=1, keepdim=True)
    return (lower <= limit).numpy()


def _squared(a: np.ndarray, i: np.ndarray, b: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Squared distances of the pairs a[i], b[j] in float64, by their differences."""
    step = max(1, ELEMENTS // a.shape[1])
    parts = [np.empty(0)]
    for start in range(0, len(i), step):
        some = slice(start, start + step)
        differences = a[i[some]].astype(np.float64) - b[j[some]].astype(np.float64)
        parts.append(np.square(differences).sum(axis=1))
    return np.concatenate(parts)


def _norms(rows: np.ndarray) -> np.ndarray:
    """Squared norms of rows (B, D), summed in float64 and given in the type of the rows."""
    blocks = [np.square(block, dtype=np.float64).sum(axis=1) for block in _blocks(rows)]
    return np.concatenate(blocks).astype(rows.dtype)


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), BLOCK):
        yield rows[start : start + BLOCK]
