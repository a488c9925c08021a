"""The processes that read images."""

import pickle

import numpy as np
import torch

from sitcli.commands.encode.reader import PictureBatches
from sitcli.images.source import open_source


def test_readers_can_be_sent_to_new_processes(source):
    """Catches: a source that only forked workers can use (macOS, Windows, Python 3.14 spawn)."""
    batches = PictureBatches(open_source(source), 32, "adm", [np.array([3, 1])])
    batches[0]
    pixels, problems = pickle.loads(pickle.dumps(batches))[0]
    assert torch.equal(pixels, batches[0][0])
    assert problems == ["", ""]
