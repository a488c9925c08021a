"""metrics.json: where it lies."""

import numpy as np
import pytest

from sitcli.commands.evaluate.stage import evaluate
from sitcli.errors import UsageError
from tests.commands.evaluate.measuring import events_and_result, pixel_settings, pixels
from tests.tiny import write_folder


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_other_samples_get_their_figures_beside_them(pipeline, kind):
    """Catches: metrics.json among the pictures of a folder, where it would be an image's
    sibling."""
    images = pixels(20, 3)
    if kind == "folder":
        path = write_folder(pipeline / "drawn", images)
    else:
        path = pipeline / "drawn.npz"
        np.savez(path, arr_0=images)
    with pytest.raises(UsageError) as caught:
        events_and_result(evaluate(pixel_settings(samples=[path])))
    assert "--reference" in caught.value.hint
    _, result = events_and_result(
        evaluate(pixel_settings(samples=[path], reference=pipeline / "out.h5"))
    )
    assert result.path == pipeline / "drawn.metrics.json"
    assert result.path.exists()
