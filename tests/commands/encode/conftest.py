"""The images that `sit encode-latents` reads here, and the store that it writes."""

import pytest

from tests.commands.encode.pictures import make_images


@pytest.fixture
def source(tmp_path):
    return make_images(tmp_path / "images")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.h5"
