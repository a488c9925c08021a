"""The metrics `sit evaluate` knows, a row each."""

from __future__ import annotations

from functools import partial

from sitcli.metrics.frechet import measure_frechet
from sitcli.metrics.inception_score import measure_inception_score
from sitcli.metrics.kid import measure_kernel_distance
from sitcli.metrics.metric import Metric
from sitcli.metrics.neighbours import (
    DC_NEIGHBOURS,
    NEIGHBOURS,
    measure_density_coverage,
    measure_precision_recall,
)

METRICS: dict[str, Metric] = {
    "fid": Metric("pool", partial(measure_frechet, name="FID", layer="pool"), frechet=True),
    "sfid": Metric(
        "spatial",
        partial(measure_frechet, name="sFID", layer="spatial"),
        frechet=True,
        needs="InceptionV3's mixed_6 map",
    ),
    "isc": Metric(
        "pool",
        measure_inception_score,
        compares=False,
        needs="class probabilities",
        distance=False,
    ),
    "kid": Metric("pool", measure_kernel_distance, suggested=True),
    "prc": Metric(
        "pool",
        measure_precision_recall,
        least=NEIGHBOURS + 1,
        distance=False,
        suggested=True,
    ),
    "dc": Metric("pool", measure_density_coverage, least=DC_NEIGHBOURS + 1, distance=False),
    "fdd": Metric(
        "dinov2",
        partial(measure_frechet, name="FID", layer="dinov2"),
        frechet=True,
        own_features="dinov2",
        in_all=False,
    ),
}
