"""Filling a store: broken images, batches that were cut off, and a source that changed."""

import numpy as np
import pytest

from sitcli.commands.encode.stage import encode
from sitcli.errors import Interrupted, SitError
from sitcli.events import Progress, Warn
from sitcli.latents.store import LatentStore
from sitcli.storage.rows import MISSING, Rows
from tests.commands.encode.pictures import encoded, settings_for, texts


def test_broken_images_are_counted_named_and_left_out(source, out):
    """Catches: broken images that are dropped silently, stop the work, or shift the labels."""
    (source / "cat" / "004.png").write_bytes(b"nonsense")
    whole = (source / "dog" / "009.jpg").read_bytes()
    (source / "dog" / "009.jpg").write_bytes(whole[: len(whole) // 2])
    result, events = encoded(settings_for(source, out))
    store = LatentStore.open(out)
    assert [name for name, _ in store.broken()] == ["cat/004.png", "dog/009.jpg"]
    assert "truncated" in store.broken()[1][1]
    assert result.summary["broken"].startswith("2 (cat/004.png: not an image")
    assert len(texts(events, Warn)) == 2
    assert store.labels.tolist() == [0] * 4 + [1] * 4
    with pytest.raises(SitError, match=r"broken image cat/004.png"):
        encoded(settings_for(source, out, strict=True))
    with pytest.raises(SitError, match=r"broken image cat/004.png"):
        encoded(settings_for(source, out.with_name("strict.h5"), strict=True))
    assert not Rows(out.with_name("strict.h5")).attrs["complete"]
    # The good images do not change for it.
    again, _ = encoded(settings_for(source, out.with_name("strict.h5")))
    assert again.data["checksum"] == result.data["checksum"]


def test_a_source_without_one_good_image_is_an_error(source, out):
    """Catches: a complete store of nothing."""
    with pytest.raises(SitError, match=r"none of the 10 images can be used.*pixels") as failure:
        encoded(settings_for(source, out, crop="none"))
    assert "--crop adm" in failure.value.hint
    assert not Rows(out).attrs["complete"]


def test_a_torn_batch_is_encoded_again_as_a_whole(source, out):
    """Catches: a resume whose batches hold other images than an unbroken run's."""
    whole = encoded(settings_for(source, out, vae="patch-pca"))[0].data["checksum"]
    with Rows(out, writable=True) as file:
        file.set_attrs(complete=False)
        other = np.ones((1, *file.shape("latents")[1:]), np.float16)
        file.write([4], latents=other)
        file.write([5], latents=other, status=MISSING)
    result, events = encoded(settings_for(source, out, vae="patch-pca"))
    assert result.data["checksum"] == whole
    done = [event.done for event in events if isinstance(event, Progress)]
    assert done[:2] == [9, 10]
    assert any("going on with" in text and "9 of 10" in text for text in texts(events))


def test_ctrl_c_says_how_to_go_on(source, out):
    """Catches: a traceback, a wrong exit code, or lost work on Ctrl-C."""
    stage = encode(settings_for(source, out))
    while not (isinstance(event := next(stage), Progress) and event.done == 4):
        pass
    with pytest.raises(Interrupted) as failure:
        stage.throw(KeyboardInterrupt())
    assert failure.value.exit_code == 130
    assert "same command" in failure.value.hint
    with pytest.raises(SitError, match="not complete: 4 of 10"):
        LatentStore.open(out)
    _, events = encoded(settings_for(source, out))
    assert next(event.done for event in events if isinstance(event, Progress)) == 4


@pytest.mark.parametrize("complete", [True, False])
def test_a_changed_source_is_refused(source, out, complete):
    """Catches: rows of the old and the new images mixed in one store."""
    encoded(settings_for(source, out))
    Rows(out).set_attrs(complete=complete)
    before = out.read_bytes()
    (source / "cat" / "000.png").rename(source / "cat" / "new.png")
    with pytest.raises(SitError, match=r"with other images .* 10 then, 10 now; cat/000"):
        encoded(settings_for(source, out))
    assert out.read_bytes() == before
    assert encoded(settings_for(source, out, overwrite=True))[0].data["images"] == 10


def test_a_moved_source_is_the_same_source(source, out, tmp_path):
    """Catches: a store that cannot be completed once its images were moved."""
    encoded(settings_for(source, out))
    Rows(out).set_attrs(complete=False)
    source.rename(tmp_path / "elsewhere")
    with pytest.raises(SitError, match="images does not exist"):
        encoded(settings_for(source, out))
    encoded(settings_for(tmp_path / "elsewhere", out))
    assert LatentStore.open(out).source == str(tmp_path / "elsewhere")


def test_another_batch_size_keeps_the_stores(source, out):
    """Catches: a resume whose batches are cut otherwise than before."""
    encoded(settings_for(source, out))
    Rows(out).set_attrs(complete=False)
    _, events = encoded(settings_for(source, out, batch_size=3))
    assert any("begun with --batch-size 4, which is kept" in text for text in texts(events))


def test_rows_that_come_back_different_are_encoded_again(source, out):
    """Catches: `complete` on a store whose disk lost something."""
    stage = encode(settings_for(source, out))
    while not (isinstance(event := next(stage), Progress) and event.done == 10):
        pass
    with Rows(out, writable=True) as file:
        file.write([6], latents_flipped=np.ones((1, 3, 32, 32), np.float16))
    with pytest.raises(SitError, match=r"1 rows of .* are not what was written"):
        list(stage)
    assert not Rows(out).attrs["complete"]
    assert Rows(out).written.tolist() == [1, 1, 1, 1, 1, 1, 0, 1, 1, 1]
    healed = encoded(settings_for(source, out))[0].data["checksum"]
    assert healed == encoded(settings_for(source, out.with_name("b.h5")))[0].data["checksum"]
