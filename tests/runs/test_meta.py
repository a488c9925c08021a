"""meta.json: what is written and what is checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sitcli import names
from sitcli.commands.train.stage import train
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.latents.joined import open_stores
from sitcli.model.config import TransformerConfig
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.meta import checkpoint_meta, latent_facts, process_from, wrong_in_meta
from tests.tiny import CONFIG, finish, make_store, train_settings

PROCESSES = [
    Flow(),
    Flow(interpolant="gvp", prediction="score", loss_weight="velocity", direction=0.5),
    Diffusion(),
    Diffusion(betas="cosine", variance="fixed-small", prediction="velocity"),
]
CONFIGS = [CONFIG, dataclasses.replace(CONFIG, rope=True, mlp="swiglu", aux_block=1)]


def whole_meta(config: TransformerConfig = CONFIG, process: Flow | None = None) -> dict:
    """A meta.json as it is read from the disk."""
    spec = dict(name="pixels", kind="pixels", hash="0")
    latents = dict(image_size=8, scaling=1.0, autoencoder=spec, class_names=["a"])
    bins = dict(sums=[1.0, 2.0], counts=[1, 1])
    facts = dict(format_version=2, step=7, latents=latents, loss_by_t=bins, model="SiT-Mi/2")
    return json.loads(json.dumps(checkpoint_meta(config, process or Flow(), **facts)))


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "beyond"])
def test_what_is_written_is_what_is_read(config: TransformerConfig, process: Flow) -> None:
    """Catches: a field of the network or the process that is lost on its way through JSON."""
    meta = whole_meta(config, process)
    assert wrong_in_meta(meta) == ""
    assert TransformerConfig(**meta["transformer"]) == config
    found = process_from(meta["process"])
    assert found == process
    assert type(found) is type(process)


def test_new_fields_are_written_where_they_are_used() -> None:
    """Catches: a field that older versions do not know in every file, or one that is never
    written."""
    plain, beyond = (set(whole_meta(config)["transformer"]) for config in CONFIGS)
    assert beyond - plain == {"rope", "mlp", "aux_block"}


def change(*path: str | int, to: object) -> Callable[[dict], None]:
    def edit(meta: dict) -> None:
        for key in path[:-1]:
            meta = meta[key]
        meta[path[-1]] = to

    return edit


DAMAGE = [
    ("no 'step'", lambda meta: meta.pop("step")),
    ("no 'process'", lambda meta: meta.pop("process")),
    ("step is '7'", change("step", to="7")),
    ("latents is", change("latents", to=[])),
    ("lineage is '3'", change("lineage", to=3)),
    ("latents' image_size is 'big'", change("latents", "image_size", to="big")),
    ("latents' class_names is", change("latents", "class_names", to={})),
    ("no name, kind or hash", change("latents", "autoencoder", to={"name": "x", "kind": "kl"})),
    ("no 'counts'", lambda meta: meta["loss_by_t"].pop("counts")),
    ("its loss over t", change("loss_by_t", "sums", to=[1.0])),
    ("its loss over t", change("loss_by_t", "counts", to=[1, "many"])),
    ("network or process: ", change("transformer", "wings", to=2)),
    ("network or process: ", change("transformer", "heads", to=3)),
    ("network or process: ", change("transformer", "patch", to=0)),
    ("1000000 blocks", change("transformer", "depth", to=10**6)),
    ("tokens", change("transformer", "input_size", to=2**20)),
    ("interpolant is 'spiral'", change("process", "interpolant", to="spiral")),
    ("prediction is 'weather'", change("process", "prediction", to="weather")),
    ("loss_weight is 'lead'", change("process", "loss_weight", to="lead")),
]


@pytest.mark.parametrize(("message", "damage"), DAMAGE)
def test_damage_is_named(message: str, damage: Callable[[dict], None]) -> None:
    """Catches: a traceback later, a network of any size built first, or damage that passes."""
    meta = whole_meta()
    damage(meta)
    assert message in wrong_in_meta(meta)


@pytest.mark.parametrize(
    ("field", "known"), [("betas", names.BETAS), ("variance", names.VARIANCES)]
)
def test_the_chains_own_fields_are_checked(field: str, known: tuple[str, ...]) -> None:
    """Catches: a schedule or variance of a later version taken for the first one known."""
    for value in known:
        meta = whole_meta(process=dataclasses.replace(Diffusion(), **{field: value}))
        assert wrong_in_meta(meta) == ""
    meta["process"][field] = "another"
    assert f"{field} is 'another'" in wrong_in_meta(meta)


def test_facts_of_several_stores_are_of_all(tmp_path: Path) -> None:
    """Catches: a run on several stores that remembers the first alone."""
    paths = [tmp_path / "a.h5", tmp_path / "b.h5"]
    stores = [make_store(path, number=6 + i) for i, path in enumerate(paths)]
    facts = latent_facts(open_stores(paths))
    assert facts["store"] == str(paths[0])
    assert facts["stores"] == [str(path) for path in paths]
    assert facts["num_items"] == 13
    assert facts["class_names"] == ["red", "green", "blue"]
    assert facts["fingerprint"] not in [store.fingerprint for store in stores]
    assert json.loads(json.dumps(facts)) == facts


def test_checkpoints_without_it_read_as_before(store: Path, tmp_path: Path) -> None:
    """Catches: fields in every meta.json that older versions do not know."""
    finish(train(train_settings(store, tmp_path / "run", steps=1)))
    meta = open_checkpoint(tmp_path / "run").meta
    assert meta["process"].keys() == {"interpolant", "prediction", "loss_weight"}
    assert not {"rope", "aux_block", "mlp"} & meta["transformer"].keys()
    assert "t_shift" not in meta


def test_classes_without_images_are_written(tmp_path: Path) -> None:
    """Catches: classes that `sit sample` draws although nothing was learned of them."""
    store = make_store(tmp_path / "a.h5")
    assert "empty_classes" not in latent_facts(store)
    store.labels[store.labels == 1] = 2
    assert latent_facts(store)["empty_classes"] == [1]
