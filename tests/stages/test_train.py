"""Training: the same bits after any interruption, the same losses under any ZeRO stage."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sitcli import names
from sitcli.commands.train.job import prepare
from sitcli.commands.train.recipe import learning_rate
from sitcli.commands.train.run_settings import resolve, run_name
from sitcli.commands.train.stage import plan, train
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.errors import SitError, UsageError
from sitcli.events import Event, Progress, Stage, Warn
from sitcli.latents.feed import Order
from sitcli.machine.world import World
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir
from sitcli.settings.train import TrainSettings
from sitcli.storage.rows import Rows
from tests.tiny import ENVIRONMENT, finish, make_store, pictures, write_samples

TINY = dict(
    model="SiT-Mi/4", width=32, depth=2, heads=2, batch_size=8, log_every=1, save_every=2,
    sample_every=0, precision="fp32", lr=1e-3, device="cpu",
)  # fmt: skip


def losses(run: Path) -> list[tuple[int, float, float]]:
    return [(e["step"], e["loss"], e["grad_norm"]) for e in RunDir(run).read_metrics()]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "tiny.h5").path


def settings(store: Path, out: Path, **more) -> TrainSettings:
    return TrainSettings(latents=[store], out=out, **{**TINY, **more})


def command(store: Path, out: Path, **more) -> list[str]:
    options = {**TINY, **more, "latents": store, "out": out}
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in options.items()]
    return ["-m", "sitcli", "train", *flags]


def test_resume_is_exact(store: Path, tmp_path: Path) -> None:
    """Fault: a resume that skips the optimizer, the average, the order or the randomness."""
    finish(train(settings(store, tmp_path / "whole", steps=6, save_every=3)))
    # 2 + 2 + 2 with a batch that does not divide the epoch, saved where no log line is written.
    for steps in (2, 4, 6):
        finish(train(settings(store, tmp_path / "parts", steps=steps, save_every=2)))
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    for which in ("model", "ema"):
        whole = open_checkpoint(tmp_path / "whole").weights(which)
        parts = open_checkpoint(tmp_path / "parts").weights(which)
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    a, b = (open_checkpoint(tmp_path / name).meta["loss_by_t"] for name in ("whole", "parts"))
    assert a == b


def test_log_window_survives_resume(store: Path, tmp_path: Path) -> None:
    """Fault: the running mean of the loss forgotten when a save falls between two log lines."""
    finish(train(settings(store, tmp_path / "whole", steps=6, log_every=3)))
    for steps in (4, 6):
        finish(train(settings(store, tmp_path / "parts", steps=steps, save_every=4, log_every=3)))
    whole = {step: loss for step, loss, _ in losses(tmp_path / "whole")}
    parts = {step: loss for step, loss, _ in losses(tmp_path / "parts")}
    # The shorter run ended at step 4 with a line of its own and a fresh window.
    assert parts[3] == whole[3]


def test_model_learns(store: Path, tmp_path: Path) -> None:
    """Fault: gradients that never reach the weights; the loss must fall well below its start."""
    finish(
        train(settings(store, tmp_path / "run", steps=60, save_every=60, sample_every=60, lr=3e-3))
    )
    curve = [loss for _, loss, _ in losses(tmp_path / "run")]
    assert np.mean(curve[-10:]) < 0.75 * np.mean(curve[:5])
    assert (tmp_path / "run" / "samples" / "step-0000060.png").exists()
    assert (tmp_path / "run" / "loss.png").exists()
    assert list((tmp_path / "run" / "tb").glob("events*"))
    assert open_checkpoint(tmp_path / "run").loss_curve is not None


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_schedules(schedule: str) -> None:
    """Fault: a schedule that ends elsewhere than at 0, or a warm-up that begins at 0."""
    s = TrainSettings(lr=1.0, steps=110, warmup=10, schedule=schedule)
    assert learning_rate(s, 0) == pytest.approx(0.1)
    assert learning_rate(s, 9) == pytest.approx(1.0)
    assert learning_rate(s, 10) == pytest.approx(1.0)
    middle, end = {"constant": (1, 1), "cosine": (0.5, 0), "linear": (0.5, 0)}[schedule]
    assert learning_rate(s, 60) == pytest.approx(middle)
    assert learning_rate(s, 110) == pytest.approx(end)


def test_order_visits_everything_once_an_epoch() -> None:
    """Fault: an order that repeats or drops items, or is the same every epoch."""
    order = Order(10, seed=3)
    seen = np.concatenate([order.batch(step, 4) for step in range(5)])
    assert sorted(seen[:10]) == list(range(10))
    assert sorted(seen[10:]) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert Order(10, seed=3).batch(3, 4).tolist() == seen[12:16].tolist()
    assert Order(3, seed=0).batch(0, 8).shape == (8,)


def test_accumulation_equals_the_big_batch(store: Path, tmp_path: Path) -> None:
    """Fault: a loss that is not divided by the micro-batches, or gradients zeroed in between."""
    finish(train(settings(store, tmp_path / "one", steps=3)))
    finish(train(settings(store, tmp_path / "four", steps=3, accumulate=4)))
    for a, b in zip(losses(tmp_path / "one"), losses(tmp_path / "four"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_gradient_norm_is_that_of_every_stage(
    store: Path, tmp_path: Path, precision: str
) -> None:
    """Fault: no norm under stage 0, or one of scaled, clipped or halved gradients; one process
    that trains otherwise than under the stage of many."""
    more = dict(steps=3, accumulate=2, clip=0.1, precision=precision)
    finish(train(settings(store, tmp_path / "none", **more)))
    finish(train(settings(store, tmp_path / "one", zero="1", **more)))
    (alone, many) = (losses(tmp_path / name) for name in ("none", "one"))
    assert prepare(settings(store, tmp_path / "new", **more), World(0, 1)).zero == 0
    assert prepare(settings(store, tmp_path / "new", **more), World(0, 2)).zero == 1
    assert all(norm > 0.1 for _, _, norm in alone)
    for a, b in zip(alone, many, strict=True):
        assert a == pytest.approx(b, rel=1e-5 if precision == "fp32" else 1e-2)


def test_settings_that_change_the_run_are_refused(store: Path, tmp_path: Path) -> None:
    """Fault: a resumed run silently continued with another objective."""
    finish(train(settings(store, tmp_path / "run", steps=2)))
    with pytest.raises(UsageError, match="--interpolant linear, not gvp"):
        finish(train(settings(store, tmp_path / "run", steps=4, interpolant="gvp")))
    with pytest.raises(UsageError, match="fp32, not bf16"):
        finish(train(settings(store, tmp_path / "run", steps=4, precision="bf16")))
    other = make_store(tmp_path / "other.h5", number=30).path
    with pytest.raises(UsageError, match="other latents"):
        finish(train(settings(other, tmp_path / "run", steps=4)))
    assert losses(tmp_path / "run")[-1][0] == 2


def test_default_name_depends_on_what_is_learned(store: Path) -> None:
    """Fault: another setting landing in an old run's directory, or the same one in a new one."""
    from sitcli.latents.store import LatentStore

    opened = LatentStore.open(store)

    def name_of(**more) -> str:
        s = settings(store, None, **{"steps": 5, **more})
        return run_name(resolve(s, opened, torch.device("cpu")), opened)

    name = name_of()
    assert name == name_of(steps=9, keep=1) == name_of(interpolant="linear")
    assert len({name, name_of(lr=2e-3), name_of(block="adaln"), name_of(interpolant="gvp")}) == 4
    # The learning rate is a function of the steps.
    assert name_of(schedule="cosine") != name_of(schedule="cosine", steps=9)
    assert name.startswith("SiT-Mi-4-linear-velocity-")
    chain = name_of(model="DiT-Mi/4", betas="cosine")
    assert chain.startswith("DiT-Mi-4-cosine-noise-")
    assert chain != name_of(model="DiT-Mi/4", betas="cosine", variance="fixed-small")


@pytest.mark.parametrize(("every", "kept"), [(None, [5, 6]), (2, [2, 4, 5, 6]), (3, [3, 5, 6])])
def test_keep_prunes_the_oldest(store: Path, tmp_path: Path, every, kept) -> None:
    """Fault: pruning the newest checkpoint, one that is to stay for good, or none."""
    s = settings(store, tmp_path / "run", steps=6, save_every=1, keep=2, keep_every=every)
    finish(train(s))
    assert RunDir(tmp_path / "run").steps() == kept


def test_nan_stops_and_names_the_last_good_checkpoint(store: Path, tmp_path: Path) -> None:
    """Fault: training on after a NaN, or saving it over the last good state."""
    finish(train(settings(store, tmp_path / "run", steps=2)))
    with Rows(store, writable=True) as file:
        poison = np.full((24, 3, 8, 8), np.nan, np.float16)
        file.write(range(24), latents=poison, latents_flipped=poison)
    with pytest.raises(SitError, match=r"not finite at step 3.*step-0000002"):
        finish(train(settings(store, tmp_path / "run", steps=6)))
    assert RunDir(tmp_path / "run").steps() == [2]
    # The data are at fault: another draw does not help, and a second one is not made.
    stage = train(settings(store, tmp_path / "run", steps=6, on_nan="rollback"))
    events = []
    with pytest.raises(SitError, match="not finite at step 3"):
        events.extend(stage)
    assert sum(isinstance(event, Warn) for event in events) == 1


@pytest.mark.parametrize(("after", "redrawn"), [(4, [2, 4]), (5, [4, 6])])
def test_nan_rolls_back_once(store: Path, tmp_path: Path, after: int, redrawn: list[int]) -> None:
    """Fault: a rollback that draws the same again, forgets it on resume, or loses good steps.

    The weights are made infinite after a step: after step 4, which is saved, no loss has shown it.
    """
    run, plain = RunDir(tmp_path / "run"), RunDir(tmp_path / "plain")
    stage = train(settings(store, run.path, steps=8, on_nan="rollback"))
    warnings = []
    for event in stage:
        warnings += [event.text] if isinstance(event, Warn) else []
        if isinstance(event, Progress) and event.done == after and not warnings:
            engine = stage.gi_frame.f_locals["trainer"].engine
            for parameter in engine.module.parameters():
                parameter.data.fill_(np.inf)
            stage.gi_frame.f_locals["trainer"].ema.update(0.5)
    assert len(warnings) == 1
    finish(train(settings(store, plain.path, steps=8)))
    a, b = (dict(numbered_losses(r.path)) for r in (run, plain))
    first, last = redrawn
    assert sorted(a) == list(range(1, 9))
    assert all(a[step] == b[step] for step in range(1, first + 1))
    assert all(a[step] != b[step] for step in range(first + 1, last + 1))
    assert np.isfinite(list(a.values())).all()
    assert open_checkpoint(run.path).meta["redrawn"] == [redrawn]
    shutil.rmtree(run.step_path(8))
    finish(train(settings(store, run.path, steps=8, on_nan="rollback")))
    assert dict(numbered_losses(run.path)) == a
    assert open_checkpoint(run.path).meta["redrawn"] == [redrawn]


def numbered_losses(run: Path) -> list[tuple[int, float]]:
    return [(e["step"], e["loss"]) for e in RunDir(run).read_metrics()]


@pytest.mark.parametrize("limit", [40_000, 400_000])
def test_a_full_disk_keeps_the_last_checkpoint(store: Path, tmp_path: Path, limit: int) -> None:
    """Fault: a traceback from torch or safetensors, or a half-written checkpoint that counts.

    A limit on the size of a file stands for the disk: the smaller one stops DeepSpeed's first
    file, the larger one the optimizer's state.
    """
    finish(train(settings(store, tmp_path / "run", steps=2)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(SitError, match="cannot save step 4") as error:
            finish(train(settings(store, tmp_path / "run", steps=4)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "step-0000002" in error.value.hint
    run = RunDir(tmp_path / "run")
    assert run.steps() == [2]
    assert run.partial() == []
    finish(train(settings(store, tmp_path / "run", steps=4)))
    assert run.steps() == [2, 4]


def events_on_a_full_disk(stage: Stage) -> list[Event]:
    """All events of a training whose disk is full from step 3 until it warns."""
    events, before = [], resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for event in stage:
            events.append(event)
            if isinstance(event, Progress) and event.done == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
            if isinstance(event, Warn):
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return events


def test_a_full_disk_in_the_middle(store: Path, tmp_path: Path) -> None:
    """Fault: hours of training thrown away for one checkpoint, or --strict that trains on."""
    run = RunDir(tmp_path / "run")
    with pytest.raises(SitError, match="cannot save step 4"):
        events_on_a_full_disk(train(settings(store, run.path, steps=8, strict=True)))
    assert run.steps() == [2]
    assert run.partial() == []
    events = events_on_a_full_disk(train(settings(store, run.path, steps=8, keep=0)))
    (warning,) = (event.text for event in events if isinstance(event, Warn))
    assert "cannot save step 4" in warning
    assert "training goes on, the last good checkpoint is" in warning
    assert run.steps() == [2, 6, 8]
    assert run.partial() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(model="SiT-S/3"), "patch 3 does not divide"),
        (dict(model="SiT-Q/2"), "no model is called"),
        (dict(model="DiT-S/2", interpolant="gvp"), "--interpolant is an option of SiT"),
        (dict(betas="cosine"), "--betas is an option of DiT"),
        (dict(posterior="mode"), "--posterior means nothing here"),
        (dict(variance="fixed-small"), "--variance is an option of DiT"),
        (dict(batch_size=9, accumulate=2), "not divisible"),
        (dict(heads=3), "heads do not divide"),
    ],
)
def test_bad_options_touch_nothing(store: Path, tmp_path: Path, options, message) -> None:
    """Fault: a bad option found only after files were written."""
    with pytest.raises(UsageError, match=message):
        finish(train(settings(store, tmp_path / "run", steps=2, **options)))
    assert not (tmp_path / "run").exists()


def test_a_sample_set_is_no_place_for_a_run(store: Path, tmp_path: Path) -> None:
    """Fault: a folder that is both, and that no command reads any more."""
    write_samples(tmp_path / "set", pictures(2)[0])
    with pytest.raises(UsageError, match="is a sample set"):
        finish(train(settings(store, tmp_path / "set", steps=2)))


def test_dry_run_touches_nothing(store: Path, tmp_path: Path) -> None:
    """Fault: a plan that creates the run directory."""
    before = sorted(tmp_path.rglob("*"))
    result = plan(settings(store, tmp_path / "run", steps=10))
    assert result.data["steps"] == 10
    assert result.data["params"] > 0
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("zero", ["0", "1", "3"])
def test_the_planned_size_is_the_checkpoints(store: Path, tmp_path: Path, zero: str) -> None:
    """Fault: a plan that forgets what DeepSpeed writes beside our own files."""
    planned = plan(settings(store, tmp_path / "run", steps=1, zero=zero)).data["checkpoint_bytes"]
    step = finish(train(settings(store, tmp_path / "run", steps=1, zero=zero))).path
    size = sum(path.stat().st_size for path in step.rglob("*") if path.is_file())
    assert planned == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize("text", ["train: [1,", "- 1", "train:"])
def test_a_damaged_config_is_one_line(store: Path, tmp_path: Path, text: str) -> None:
    """Fault: a parser's report of many lines, or a traceback."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(text)
    with pytest.raises(SitError, match=r"config.yaml is damaged[^\n]*$"):
        prepare(settings(store, tmp_path / "run"), World(0, 1))


def test_next_names_a_run_that_is_not_the_newest(store: Path, tmp_path: Path, monkeypatch) -> None:
    """Fault: a `next` command that would sample from another run."""
    monkeypatch.chdir(tmp_path)
    first, second = (settings(store, Path("runs") / name, steps=1) for name in ("a", "b"))
    assert finish(train(first)).next == "sit sample"
    assert finish(train(second)).next == "sit sample"
    assert finish(train(first)).next == "sit sample runs/a"


def test_every_zero_stage_goes_on_from_every_other(store: Path, tmp_path: Path) -> None:
    """Fault: moments lost or misplaced when the stage changes: the next losses would differ."""
    finish(train(settings(store, tmp_path / "whole", steps=10)))
    for steps, zero in ((2, "0"), (4, "3"), (6, "1"), (8, "2"), (10, "0")):
        finish(train(settings(store, tmp_path / "parts", steps=steps, zero=zero)))
    whole, parts = (dict(numbered_losses(tmp_path / name)) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for step, loss in whole.items():
        assert parts[step] == pytest.approx(loss, rel=1e-6)


def test_state_that_is_not_whole(store: Path, tmp_path: Path) -> None:
    """Fault: training on with moments of zero where a file of the state is missing or damaged."""
    finish(train(settings(store, tmp_path / "run", steps=2)))
    state = RunDir(tmp_path / "run").newest() / "state"
    (file,) = state.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SitError, match=r"cannot read .*rank-00000-of-00001"):
        finish(train(settings(store, tmp_path / "run", steps=4)))
    file.rename(state / "rank-00000-of-00002.safetensors")
    with pytest.raises(SitError, match="files of state/ are missing"):
        finish(train(settings(store, tmp_path / "run", steps=4)))
    (state / "rank-00000-of-00002.safetensors").unlink()
    (state / "mp_rank_00_model_states.pt").touch()
    with pytest.raises(SitError, match=r"in the form of sit 0\.2"):
        finish(train(settings(store, tmp_path / "run", steps=4)))
    assert RunDir(tmp_path / "run").steps() == [2]


def test_unconditional(tmp_path: Path) -> None:
    """Fault: a label table of the wrong size, or labels passed to a model that has none."""
    store = make_store(tmp_path / "flat.h5", classes=False).path
    finish(train(settings(store, tmp_path / "run", steps=2)))
    assert open_checkpoint(tmp_path / "run").config.num_classes == 0
    with pytest.raises(UsageError, match="--label-dropout means nothing here"):
        finish(train(settings(store, tmp_path / "other", steps=2, label_dropout=0.5)))


@pytest.mark.parametrize("prediction", ["score", "noise", "data"])
def test_every_prediction_trains(store: Path, tmp_path: Path, prediction: str) -> None:
    """Fault: a prediction accepted by the options but without a training path."""
    s = settings(
        store, tmp_path / "run", steps=3, prediction=prediction, interpolant="vp",
        loss_weight="velocity",
    )  # fmt: skip
    finish(train(s))
    assert open_checkpoint(tmp_path / "run").process == Flow(
        interpolant="vp", prediction=prediction, loss_weight="velocity"
    )


@pytest.mark.parametrize("variance", names.VARIANCES)
@pytest.mark.parametrize("betas", names.BETAS)
def test_the_chain_trains(store: Path, tmp_path: Path, betas: str, variance: str) -> None:
    """Fault: a discrete model that does not learn, or comes back as another process."""
    s = settings(
        store, tmp_path / "run", model="DiT-Mi/4", steps=60, save_every=60, lr=3e-3, betas=betas,
        variance=variance,
    )  # fmt: skip
    finish(train(s))
    curve = [loss for _, loss, _ in losses(tmp_path / "run")]
    assert np.mean(curve[-10:]) < 0.75 * np.mean(curve[:5])
    checkpoint = open_checkpoint(tmp_path / "run")
    assert checkpoint.process == Diffusion(betas=betas, variance=variance)
    assert checkpoint.config.out_channels == (6 if variance == "learned-range" else 3)
    assert checkpoint.loss_curve is not None


def test_the_chain_resumes_exactly(store: Path, tmp_path: Path) -> None:
    """Fault: steps of the chain drawn from anything but (seed, step)."""
    finish(train(settings(store, tmp_path / "whole", model="DiT-Mi/4", steps=4)))
    for steps in (2, 4):
        finish(train(settings(store, tmp_path / "parts", model="DiT-Mi/4", steps=steps)))
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_half_a_checkpoint_does_not_count(store: Path, tmp_path: Path) -> None:
    """Fault: resuming from a step whose save was cut off."""
    finish(train(settings(store, tmp_path / "run", steps=4)))
    run = RunDir(tmp_path / "run")
    (run.step_path(4) / "meta.json").unlink()
    (run.path / ".saving-step-0000006").mkdir()
    (run.path / "step-0000001").mkdir()  # a removal that was cut off
    job = prepare(settings(store, run.path, steps=6), World(0, 1))
    assert job.resume.step == 2
    finish(train(settings(store, run.path, steps=4)))
    assert run.steps() == [2, 4]
    assert run.partial() == []
    assert not (run.path / "step-0000001").exists()


def test_sigterm_saves_and_exits_143(store: Path, tmp_path: Path) -> None:
    """Fault: work lost on preemption, a traceback, or an exit code a scheduler misreads.

    The signal comes twice, as to the processes of torchrun: the second must not kill the save.
    """
    words = command(store, tmp_path / "run", steps=100_000, save_every=50_000)
    process = subprocess.Popen(
        [sys.executable, *words], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    wait_for_steps(tmp_path / "run", 3, process)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in errors
    assert "stopped by a signal, saved at step" in errors
    assert RunDir(tmp_path / "run").steps()


def wait_for_steps(run: Path, number: int, process: subprocess.Popen, timeout: float = 120) -> None:
    end = time.monotonic() + timeout
    while len(RunDir(run).read_metrics()) < number:
        assert process.poll() is None, "the trainer ended early"
        assert time.monotonic() < end, "the trainer did not get going"
        time.sleep(0.02)


def kill_and_compare(store: Path, tmp_path: Path, kills: int, steps: int, seed: int) -> None:
    """Kill a trainer `kills` times at random moments; the run must equal an unbroken one."""
    random = np.random.default_rng(seed)
    finish(train(settings(store, tmp_path / "whole", steps=steps)))
    words = [sys.executable, *command(store, tmp_path / "killed", steps=steps)]
    for _ in range(kills):
        process = subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        before = len(RunDir(tmp_path / "killed").read_metrics())
        if before < steps:
            wait_for_steps(tmp_path / "killed", min(before + 1, steps), process)
            time.sleep(random.uniform(0, 0.3))
        process.kill()
        process.wait()
    subprocess.run(words, env=ENVIRONMENT, check=True, capture_output=True)
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    for which in ("model", "ema"):
        whole = open_checkpoint(tmp_path / "whole").weights(which)
        killed = open_checkpoint(tmp_path / "killed").weights(which)
        assert all(torch.equal(whole[key], killed[key]) for key in whole)


def test_kill_once(store: Path, tmp_path: Path) -> None:
    """Fault: a checkpoint or a log that a kill -9 leaves unreadable or out of step."""
    kill_and_compare(store, tmp_path, kills=1, steps=12, seed=0)


@pytest.mark.slow
def test_kill_five_times(store: Path, tmp_path: Path) -> None:
    """Fault: as above, at five random moments."""
    kill_and_compare(store, tmp_path, kills=5, steps=60, seed=1)


def zero_losses(store: Path, out: Path, zero: int, procs: int) -> list[tuple[int, float]]:
    words = command(store, out, steps=4, zero=zero, log_every=1, procs=procs)
    done = subprocess.run(
        [sys.executable, *words], env=ENVIRONMENT, check=True, capture_output=True
    )
    assert done.stdout.decode().splitlines() == [str(RunDir(out).newest())]
    return numbered_losses(out)


@pytest.mark.parametrize("zero", [pytest.param(0, marks=pytest.mark.slow), 1, 2, 3])
def test_two_processes_equal_one(store: Path, tmp_path: Path, zero: int) -> None:
    """Fault: ranks that see the same data, losses not reduced, an average of one rank's shard,
    a result printed by every rank."""
    finish(train(settings(store, tmp_path / "one", steps=4)))
    two = zero_losses(store, tmp_path / "two", zero, 2)
    assert [step for step, _ in two] == [1, 2, 3, 4]
    one = [(e["step"], e["loss"]) for e in RunDir(tmp_path / "one").read_metrics()]
    for (_, a), (_, b) in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-5)
    for which in ("model", "ema"):
        single = open_checkpoint(tmp_path / "one").weights(which)
        double = open_checkpoint(tmp_path / "two").weights(which)
        assert single.keys() == double.keys()
        for key in single:
            torch.testing.assert_close(double[key], single[key], rtol=1e-4, atol=2e-5)
    meta = json.loads((RunDir(tmp_path / "two").newest() / "meta.json").read_text())
    assert meta["world_size"] == 2
    assert len(RunDir(tmp_path / "two").read_metrics()[-1]["rank_seconds"]) == 2


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([(1, 1, 1), (2, 2, 3), (3, 1, 0)], id="there-and-back"),
        pytest.param(
            [(2, 1, 1), (4, 2, 2), (6, 4, 3), (8, 2, 0), (10, 1, 3)],
            id="up-and-down",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [(2, 4, 1), (4, 4, 3), (6, 3, 2), (8, 3, 0), (10, 2, 1)],
            id="four-down",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_resume_across_world_sizes_and_stages(store: Path, tmp_path: Path, parts) -> None:
    """Fault: another order or noise under another number of processes, or moments misplaced."""
    options = dict(batch_size=12)
    finish(train(settings(store, tmp_path / "whole", steps=parts[-1][0], **options)))
    for steps, procs, zero in parts:
        more = dict(options, steps=steps, zero=str(zero))
        if procs == 1:
            finish(train(settings(store, tmp_path / "parts", **more)))
            continue
        words = command(store, tmp_path / "parts", procs=procs, **more)
        subprocess.run([sys.executable, *words], env=ENVIRONMENT, check=True, capture_output=True)
    whole, pieces = (dict(numbered_losses(tmp_path / name)) for name in ("whole", "parts"))
    assert whole.keys() == pieces.keys()
    for step, loss in whole.items():
        assert pieces[step] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 3])
def test_two_processes_resume_exactly(store: Path, tmp_path: Path, zero: int) -> None:
    """Fault: a shard that comes back to the wrong rank, or rounded."""
    for name, parts in (("whole", (6,)), ("parts", (2, 6))):
        for steps in parts:
            words = command(store, tmp_path / name, steps=steps, procs=2, zero=zero)
            subprocess.run(
                [sys.executable, *words], env=ENVIRONMENT, check=True, capture_output=True
            )
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_torchrun_and_one_voice(store: Path, tmp_path: Path) -> None:
    """Fault: an error or a result said by every process; one failing for all of them."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = [sys.executable, *launcher, *command(store, tmp_path / "run", steps=2)]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(RunDir(tmp_path / "run").newest())]
    assert done.stderr.count("run: ") == 1
    failed = subprocess.run(
        [*words, "--interpolant=gvp"], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert failed.returncode
    assert failed.stderr.count("error: ") == 1
    assert "--interpolant linear, not gvp" in failed.stderr
