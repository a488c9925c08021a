"""The table of metrics."""

import dataclasses

from sitcli.metrics.table import METRICS
from sitcli.settings.evaluate import EvaluateSettings


def test_every_metric_has_its_flag():
    """Catches: a row of METRICS that no option asks for."""
    fields = {field.name for field in dataclasses.fields(EvaluateSettings)}
    assert set(METRICS) <= fields
