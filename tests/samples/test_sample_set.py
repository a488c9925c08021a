"""A sample set on the disk."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from sitcli.commands.sample.stage import sample
from sitcli.errors import SitError
from sitcli.samples.sample_set import SampleSet, file_of
from sitcli.settings.sample import SampleSettings
from sitcli.storage.rows import Rows
from tests.tiny import finish, pictures, write_samples


def create(path: Path, **more) -> SampleSet:
    """A set of six images that are not drawn yet."""
    options = dict(image_size=(8, 4), latent_shape=None, meta={"mode": "ode"}) | more
    return SampleSet.create(path, labels=np.arange(6) % 3, seeds=np.arange(6) + 10, **options)


def test_a_set_is_filled_row_by_row(tmp_path: Path) -> None:
    """Catches: evaluations counted by batch instead of by image, or of images that are not there,
    and a set that is complete before it is finished."""
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 4, 3), dtype=np.uint8)
    samples = create(tmp_path / "set" / "samples.h5")
    assert samples.evaluations == (0, 0)
    assert "evaluations_per_image" not in samples.meta
    samples.write(np.array([4, 1]), evaluations=14, images=images[[4, 1]])
    samples.write(np.array([0]), evaluations=10, images=images[[0]])
    again = SampleSet.open(tmp_path / "set")
    assert again.done.tolist() == [True, True, False, False, True, False]
    assert again.evaluations == (24, 3)
    assert (again.meta["evaluations_per_image"], again.meta["mode"]) == (8.0, "ode")
    assert np.array_equal(again.images[[0, 1, 4]], images[[0, 1, 4]])
    assert not again.images[[2, 3, 5]].any()
    assert (again.labels.tolist(), again.seeds.tolist()) == ([0, 1, 2] * 2, [*range(10, 16)])
    assert not again.complete
    samples.finish()
    assert SampleSet.open(tmp_path / "set").complete
    assert (tmp_path / "set" / "meta.json").exists()


def test_what_is_kept_beside_the_images(tmp_path: Path) -> None:
    """Catches: room for latents that nobody asked for, or images where latents alone are kept."""
    plain = create(tmp_path / "a.h5")
    assert set(plain.rows.names) >= {"images", "evaluations", "labels", "seeds"}
    assert not {"latents", "noise"} & set(plain.rows.names)
    both = create(tmp_path / "b.h5", latent_shape=(4, 2, 1), noise_shape=(4, 2, 1))
    assert both.rows.shape("latents") == both.rows.shape("noise") == (6, 4, 2, 1)
    alone = create(tmp_path / "c.h5", image_size=None, latent_shape=(4, 2, 1))
    assert alone.images is None
    assert SampleSet.open(tmp_path / "c.h5").images is None


def test_files_of_a_lone_set_carry_its_name(tmp_path: Path) -> None:
    """Catches: two sets in one folder that write over each other's grid."""
    assert file_of(tmp_path / "set") == tmp_path / "set" / "samples.h5"
    assert file_of(tmp_path / "a.h5") == tmp_path / "a.h5"
    folder, lone = create(tmp_path / "set" / "samples.h5"), create(tmp_path / "a.h5")
    assert folder.beside("grid.png") == tmp_path / "set" / "grid.png"
    assert lone.beside("grid.png") == tmp_path / "a.grid.png"


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("images", np.zeros((6, 8, 4, 4), "u1"), "its images are"),
        ("images", np.zeros((6, 0, 4, 3), "u1"), "its images are"),
        ("labels", np.full(6, -1), "a label is negative"),
        ("images", None, "neither images nor latents"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, name: str, values, message: str) -> None:
    """Catches: a traceback in every command that reads samples."""
    create(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file[name]
        if values is not None:
            file[name] = values
    with pytest.raises(SitError, match=message):
        SampleSet.open(tmp_path / "a.h5")


def test_another_file_is_no_sample_set(tmp_path: Path) -> None:
    """Catches: a latent store measured as samples."""
    write_samples(tmp_path / "set", pictures(2)[0])
    Rows(tmp_path / "set" / "samples.h5").set_attrs(format="sit-latents")
    with pytest.raises(SitError, match="is not a sample set"):
        SampleSet.open(tmp_path / "set")


def test_a_set_without_its_facts_is_one_line(run: Path, tmp_path: Path) -> None:
    """Catches: a traceback from a sample set that another tool rewrote."""
    result = finish(sample(SampleSettings(checkpoint=run, out=tmp_path / "s", num=2, steps=1)))
    with h5py.File(result.path / "samples.h5", "r+") as file:
        del file["evaluations"]
    with pytest.raises(SitError, match="is damaged: no 'evaluations'"):
        SampleSet.open(result.path)
