"""Several stores read as one."""

import numpy as np
import pytest
import torch

from sitcli.errors import UsageError
from sitcli.latents.joined import open_stores
from sitcli.latents.store import LatentStore
from sitcli.storage.rows import Rows
from tests.latents.stores import NUM, SIDE, SPEC, C, make_store, make_two


def test_several_stores_are_read_as_one(tmp_path):
    """Catches: items of one store taken from another, at a wrong place, or out of their order."""
    paths = make_two(tmp_path)
    with Rows(paths[1], writable=True) as file:
        latents, status = np.array(file.array("latents")), file.written
        for name, factor in (("latents", 2), ("latents_flipped", 3)):
            values = (factor * latents).astype(np.float16)
            file.write(np.arange(NUM), status=status, **{name: values})
    joined, parts = open_stores(paths), [LatentStore.open(path) for path in paths]
    assert joined.num_items == 2 * (NUM - 1)
    assert joined.labels.tolist() == [*parts[0].labels, *parts[1].labels]
    assert joined.image_paths() == parts[0].image_paths() + parts[1].image_paths()
    indices = np.random.default_rng(0).permutation(joined.num_items)
    flip = np.random.default_rng(1).random(len(indices)) < 0.5
    noise = torch.randn(len(indices), C, SIDE, SIDE)
    for more in ({}, {"noise": noise}):
        result = joined.batch(indices, flip=flip, **more)
        for k, index in enumerate(indices):
            part, item = divmod(int(index), NUM - 1)
            one = {name: value[k : k + 1] for name, value in more.items()}
            expected = parts[part].batch([item], flip=flip[k : k + 1], **one)
            torch.testing.assert_close(result[k : k + 1], expected, rtol=0, atol=0)
    assert list(joined.autoencoder_arrays) == ["basis"]


def test_one_store_is_itself_and_the_order_of_several_counts(tmp_path):
    """Catches: a run on one store that no longer finds itself; and the other order, in which an
    item has another number, taken for the same data."""
    paths = make_two(tmp_path)
    assert open_stores(paths[:1]).fingerprint == LatentStore.open(paths[0]).fingerprint
    there, back = open_stores(paths).fingerprint, open_stores(paths[::-1]).fingerprint
    assert len({there, back, open_stores(paths[:1]).fingerprint}) == 3
    assert open_stores(paths).fingerprint == there


def test_classes_are_joined_by_name(tmp_path):
    """Catches: class 0 of one store trained as class 0 of another that calls it otherwise."""
    make_store(tmp_path / "a.h5", class_names=["k0", "k2", "k5"])
    make_store(tmp_path / "b.h5", class_names=["k1", "k2", "k9"], source_fingerprint="g")
    joined = open_stores([tmp_path / "b.h5", tmp_path / "a.h5"])
    assert joined.class_names == ["k0", "k1", "k2", "k5", "k9"]
    labels = np.delete(np.arange(NUM) % 3, 4)
    assert joined.labels.tolist() == [*np.array([1, 2, 4])[labels], *np.array([0, 2, 3])[labels]]
    assert joined.num_classes == 5


def test_numbered_classes_keep_their_numbers(tmp_path):
    """Catches: the classes of two dataset.json sorted as text: 0, 1, 10, 11, 2, ..."""
    numbers = [str(number) for number in range(12)]
    make_store(tmp_path / "a.h5", class_names=numbers[:11])
    make_store(tmp_path / "b.h5", class_names=numbers, source_fingerprint="g")
    joined = open_stores([tmp_path / "a.h5", tmp_path / "b.h5"])
    assert joined.class_names == numbers
    labels = np.delete(np.arange(NUM) % 3, 4)
    assert joined.labels.tolist() == [*labels, *labels]
    assert joined.empty_classes == list(range(3, 12))


def test_without_classes(tmp_path):
    """Catches: stores of unlabelled images that cannot be joined, or only with labelled ones."""
    plain = dict(class_names=[], labels=np.zeros(NUM))
    paths = make_two(tmp_path, **plain)
    with pytest.raises(UsageError, match=r"a\.h5 holds classes and .*b\.h5 none"):
        open_stores(paths)
    make_store(tmp_path / "c.h5", source_fingerprint="h", **plain)
    joined = open_stores([tmp_path / "b.h5", tmp_path / "c.h5"])
    assert (joined.num_classes, joined.labels.tolist()) == (0, [0] * 2 * (NUM - 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"autoencoder": {**SPEC, "hash": "cd"}}, r"autoencoder is v \(ab\) and v \(cd\)"),
        ({"kind": "latents"}, "kind is moments and latents"),
        ({"scaling": [0.5, 0.5, 1.0]}, "scaling is 0.5, shift 0.25 and 0.5 0.5 1, shift 0.25"),
        ({"image_size": 64}, "image size is 32 and 64"),
        ({"crop": "resize"}, "crop is adm and resize"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_stores_that_do_not_fit_together_are_refused(tmp_path, change, message):
    """Catches: latents of two scales or two autoencoders in one training."""
    with pytest.raises(UsageError, match=f"a.h5 and .*b.h5 cannot be read as one: .*{message}"):
        open_stores(make_two(tmp_path, **change))


def test_the_same_images_twice_are_refused(tmp_path):
    """Catches: a store named twice by mistake, whose images then count double."""
    paths = make_two(tmp_path)
    with pytest.raises(UsageError, match=r"a\.h5 and .*a\.h5 hold the same images"):
        open_stores([paths[0], paths[1], tmp_path / "." / "a.h5"])
