"""Times, extra losses, routing and learning rate, as the settings ask for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitcli.commands.train.recipe import (
    Routing,
    learning_rate,
    make_extras,
    make_routing,
    make_times,
    network_parts,
    parse_repa,
    resolve_recipe,
)
from sitcli.commands.train.stage import plan as plan_training
from sitcli.commands.train.stage import train
from sitcli.errors import UsageError
from sitcli.latents.store import LatentStore
from sitcli.settings.train import TrainSettings
from tests.tiny import finish, train_settings


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_schedules(schedule: str) -> None:
    """Catches: a schedule that ends elsewhere than at 0, or a warm-up that begins at 0."""
    s = TrainSettings(lr=1.0, steps=110, warmup=10, schedule=schedule)
    assert learning_rate(s, 0) == pytest.approx(0.1)
    assert learning_rate(s, 9) == pytest.approx(1.0)
    assert learning_rate(s, 10) == pytest.approx(1.0)
    middle, end = {"constant": (1, 1), "cosine": (0.5, 0), "linear": (0.5, 0)}[schedule]
    assert learning_rate(s, 60) == pytest.approx(middle)
    assert learning_rate(s, 110) == pytest.approx(end)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(t_mean=1.0), "no effect without --t-dist"),
        (dict(sync_blocks="1,2"), "no effect without --layer-sync"),
        (dict(layer_sync=0.2, sync_blocks="2,1"), "not two blocks"),
        (dict(layer_sync=0.2, sync_blocks="1,9"), "not two blocks of 2"),
        (dict(internal_guidance=0.5, aux_block=2), "--aux-block 2"),
        (dict(tread=0.5, tread_blocks="x"), "--tread-blocks x"),
        (dict(repa="0.5,1"), "holds no features"),
        (dict(repa="0.5"), "LAMBDA is above 0"),
        (dict(t_shift="-1"), "is not a time shift"),
        (dict(rope=True, width=24, heads=4), "multiple of 4 channels"),
    ],
    ids=str,
)
def test_training_refusals(store: Path, tmp_path: Path, options: dict, message: str) -> None:
    """Catches: a recipe that begins, and fails or does nothing."""
    with pytest.raises(UsageError, match=message):
        finish(train(train_settings(store, tmp_path / "run", steps=1, depth=2, **options)))
    assert not (tmp_path / "run").exists()


def test_defaults_by_depth(store: Path) -> None:
    """Catches: blocks beyond a shallow network's end, or other pairs than the papers'."""

    def resolved(depth: int) -> str:
        more = dict(layer_sync=0.2, internal_guidance=0.5, tread=0.5)
        return plan_training(train_settings(store, None, steps=1, depth=depth, **more)).summary[
            "objective"
        ]

    for depth, sync, aux, tread in (
        (28, "8,16", 8, "2,24"), (24, "7,14", 8, "2,20"), (12, "3,7", 4, "2,8"),
        (4, "1,2", 1, "1,3"),
    ):  # fmt: skip
        text = resolved(depth)
        assert f"blocks {sync}" in text
        assert f"after block {aux}," in text
        assert f"between {tread}" in text


def test_times_change_when_they_should(store: Path) -> None:
    """Catches: an UNTIL that counts from the other end."""
    run = train_settings(store, None, t_dist="logit-normal", t_mean=0.0, t_std=1.0, t_dist_until=3)
    assert [make_times(run, step).distribution for step in (0, 2, 3, 9)] == [
        "logit-normal", "logit-normal", "uniform", "uniform",
    ]  # fmt: skip


def test_a_resolved_recipe_resolves_to_itself(store: Path) -> None:
    """Catches: a run that cannot go on, as what was filled in is refused or filled in anew."""
    opened = LatentStore.open(store)
    run = train_settings(
        store, None, t_dist="logit-normal", t_shift="auto", layer_sync=0.2, internal_guidance=0.5,
        tread=0.5,
    )  # fmt: skip
    resolved = resolve_recipe(run, opened, 12)
    assert resolve_recipe(resolved, opened, 12) == resolved
    assert None not in (resolved.t_mean, resolved.t_std, resolved.t_shift, resolved.aux_block)
    plain = resolve_recipe(train_settings(store, None), opened, 12)
    assert plain == train_settings(store, None)


def test_parts_of_the_network_and_of_the_loss_agree(store: Path) -> None:
    """Catches: a head without its loss, a loss without its head, or blocks exchanged."""
    opened = LatentStore.open(store)
    run = train_settings(
        store, None, layer_sync=0.2, sync_blocks="2,5", internal_guidance=0.5, aux_block=3,
        tread=0.25, tread_blocks="1,4", rope=True,
    )  # fmt: skip
    resolved = resolve_recipe(run, opened, 6)
    parts, extras = network_parts(resolved, opened), make_extras(resolved)
    assert (parts["aux_block"], parts["rope"]) == (3, True)
    assert "align_block" not in parts
    assert (extras.sync, extras.sync_blocks) == (0.2, (2, 5))
    assert (extras.internal, extras.repa) == (0.5, 0.0)
    assert make_routing(resolved) == Routing(0.25, 1, 4)
    plain = resolve_recipe(train_settings(store, None), opened, 6)
    assert make_routing(plain) is None
    assert (make_extras(plain).sync, make_extras(plain).internal) == (0, 0)


@pytest.mark.parametrize(("share", "kept"), [(0.5, 8), (0.25, 12), (0.9, 2), (0.999, 1)])
def test_at_least_one_token_passes_through(share: float, kept: int) -> None:
    """Catches: a share of the tokens that are kept in place of those that skip, or none kept."""
    assert Routing(share, 1, 2).kept(16) == kept


@pytest.mark.parametrize("text", ["0.5", "0.5,0", "0.5,4", "0,1", "-1,1", "inf,1", "nan,1", "a,b"])
def test_repa_is_a_weight_and_a_block(text: str) -> None:
    """Catches: a weight that is no number, or a block that the network does not have."""
    assert parse_repa("0.5,3", 4) == (0.5, 3)
    with pytest.raises(UsageError, match="--repa"):
        parse_repa(text, 4)
