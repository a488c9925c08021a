"""What it takes to add something: one row, or one file with a row, and one name.

A copy of the package is edited as a developer would edit it, and everything that was added is then
used through the command line, exports included.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

import sitcli
from sitcli.samples.sample_set import SampleSet
from tests.tiny import ENVIRONMENT, pictures, write_folder

# The names: the one line each that names.py (a metric: settings/evaluate.py) gets.
NAMES = {
    "names.py": {
        'Interpolant = Literal["linear"': 'Interpolant = Literal["toy", "linear"',
        'Prediction = Literal["velocity"': 'Prediction = Literal["toy", "velocity"',
        'LossWeight = Literal["none"': 'LossWeight = Literal["toy", "none"',
        'Wt = Literal["kl"': 'Wt = Literal["toy", "kl"',
        'OneStepSolver = Literal["euler"': 'OneStepSolver = Literal["toy", "euler"',
        'MultistepSolver = Literal["ab2"': 'MultistepSolver = Literal["toy-multi", "ab2"',
        'SdeSolver = Literal["euler-maruyama"': 'SdeSolver = Literal["toy-sde", "euler-maruyama"',
        'LastStep = Literal["mean"': 'LastStep = Literal["toy", "mean"',
        'Betas = Literal["linear"': 'Betas = Literal["toy", "linear"',
        'Variance = Literal["learned-range"': 'Variance = Literal["toy", "learned-range"',
        'TimeDistribution = Literal["uniform"': 'TimeDistribution = Literal["toy", "uniform"',
        'Schedule = Literal["constant"': 'Schedule = Literal["toy", "constant"',
        'Block = Literal["adaln-zero"': 'Block = Literal["toy", "adaln-zero"',
        'Mlp = Literal["gelu"': 'Mlp = Literal["toy", "gelu"',
        'Norm = Literal["layer"': 'Norm = Literal["toy", "layer"',
        'Crop = Literal["adm"': 'Crop = Literal["toy", "adm"',
        'Labels = Literal["auto"': 'Labels = Literal["toy", "auto"',
        'EMBEDDED_VAES = ("pixels"': 'EMBEDDED_VAES = ("toy", "pixels"',
        'Lineage = Literal["official-sit"': 'Lineage = Literal["toy", "official-sit"',
        'ExportFormat = Literal["official-sit"': 'ExportFormat = Literal["toy", "official-sit"',
    },
    "settings/evaluate.py": {
        "    fid: bool =": '    toy: bool = option(False, "", group="Metrics")\n    fid: bool =',
    },
}
# The rows, put at the end of the file that holds the table.
ROWS = {
    "core/interpolant.py": """
def toy(t):
    return Path(1 - t**2, t, -2 * t, torch.ones_like(t))

INTERPOLANTS["toy"] = Interpolant(toy)
""",
    "core/prediction.py": """
PREDICTIONS["toy"] = Prediction(
    decode=lambda half, x, path: _decode_velocity(2 * half, x, path),
    encode=lambda x_star, eps, path: path.velocity(x_star, eps) / 2,
    velocity_error=lambda path: 2 * path.alpha.new_ones(()),
    turns_with_time=True,
)
LOSS_WEIGHTS["toy"] = LossWeight(lambda error, velocity, path: 2 * error)
""",
    "core/wt.py": 'WT["toy"] = Coefficient(lambda t, path: t**2)',
    "core/ode.py": """
def midpoint(velocity, x, t, s):
    h = t - s
    return x - h * velocity(x - h / 2 * velocity(x, t), t - h / 2)

ODE_STEPS["toy"] = OdeStep(midpoint, 2, 2)
MULTISTEPS["toy-multi"] = Multistep(adams_bashforth_2, 2)
""",
    "core/sde.py": """
SDE_STEPS["toy-sde"] = SdeStep(euler_maruyama, 1)
LAST_STEPS["toy"] = LAST_STEPS["tweedie"]
""",
    "core/chain.py": """
BETAS["toy"] = lambda: torch.linspace(2e-4, 0.01, NUM_STEPS, dtype=torch.float64)
VARIANCES["toy"] = VARIANCES["fixed-small"]
""",
    "core/times.py": """
def toy(random, *, mean, std):
    return random.uniform() ** 2

TIME_DISTRIBUTIONS["toy"] = TimeDistribution(toy)
""",
    "commands/train/recipe.py": 'SCHEDULES["toy"] = Schedule(lambda left: left**2)',
    "model/blocks.py": """
class Relu(Mlp):
    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)))

MLPS["toy"] = MlpKind(Relu, MLPS["gelu"].layers, "toy MLP")
NORMS["toy"] = Norm(rms_norm, lambda affine: 1, "toy norm")
BLOCKS["toy"] = Design(AdaLNBlock, FinalLayer, add, vectors=4, final_vectors=2)
""",
    "images/decode.py": """
CROPS["toy"] = CropRow(lambda image, size: np.array(image.resize((size, size)))[::-1].copy())
""",
    "images/labels.py": 'LABELLINGS["toy"] = by_image_folders',
    "images/toy.py": """
from sitcli.images.place import Format, Place

def places(path):
    names = path.read_text().split()
    return [Place(name, (path.parent / name).stat().st_size) for name in names], False

FORMAT = Format(
    endings=(".list",),
    recognises=lambda path, head: path.suffix == ".list",
    places=places,
    read=lambda path, descriptor, place: (path.parent / place.file).read_bytes(),
)
""",
    "images/source.py": """
from sitcli.images import toy

FORMATS["toy"] = toy.FORMAT
ARCHIVE_ENDINGS += toy.FORMAT.endings
""",
    "autoencoders/toy.py": """
from sitcli.autoencoders.base import Autoencoder, Embedded, embedded_spec

def restore(spec, arrays, device):
    spec = embedded_spec("toy", "Toy", channels=3, downsample=1) | {"hash": "0" * 64}
    return Autoencoder(spec, encode=lambda x: -x, decode=lambda z: -z, device=device)

EMBEDDED = Embedded(restore=restore, shape=lambda options: (3, 1))
""",
    "autoencoders/load.py": """
from sitcli.autoencoders import toy

EMBEDDED["toy"] = toy.EMBEDDED
""",
    "metrics/table.py": """
from sitcli.metrics.metric import Measured

def measure_toy(e):
    return [Measured("toy", float(len(e.fake["pool"].features)), None, {})]

METRICS["toy"] = Metric("pool", measure_toy)
""",
    "weights/lineages.py": """
LINEAGES["toy"] = Lineage(
    title="a toy",
    family="SiT",
    time_convention=PAPER,
    guided_channels="all",
    recognises=lambda clues: "its trainer's arguments are a toy's" if clues.told("toy") else "",
    process=lambda config, args, interpolant, prediction: Flow(interpolant="toy"),
)
""",
    "weights/formats.py": """
def _toy(export):
    return lambda path: torch.save({"toy": export.state["pos_embed"]}, path)

FORMATS["toy"] = Format(_toy)
""",
}
# Runs several command lines of JSON on stdin in one process; prints exit code and streams of each.
RUNNER = """
import contextlib, io, json, sys
from sitcli import __main__

results = []
for words in json.load(sys.stdin):
    sys.argv = ["sit", *words]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            __main__.main()
        except SystemExit as end:
            code = end.code or 0
    results.append([words, code, out.getvalue(), err.getvalue()])
print(json.dumps(results), file=sys.__stdout__)
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package to which the toys are added."""
    folder = tmp_path_factory.mktemp("copy")
    copy = folder / "sitcli"
    shutil.copytree(
        Path(sitcli.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__")
    )
    for name, lines in NAMES.items():
        text = (copy / name).read_text()
        for before, after in lines.items():
            assert text.count(before) == 1, before
            text = text.replace(before, after)
        (copy / name).write_text(text)
    for name, text in ROWS.items():
        with open(copy / name, "a") as file:
            file.write("\n" + text)
    return folder


def run(package: Path, folder: Path, *lines: str) -> list[str]:
    """Run `sit` with each line, in one process; what each printed, or its error."""
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps([line.split() for line in lines]),
        env=ENVIRONMENT | {"PYTHONPATH": str(package)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [f"{code}\n{out}\n{err}" for _, code, out, err in json.loads(done.stdout)]


def test_every_table_takes_a_row_and_a_name(package: Path, tmp_path: Path) -> None:
    """Catches: a place that asks for a row by its name, or takes an unknown one for the last it
    knows; an added interpolant was once exported as another one, without an error."""
    images, labels = pictures(12)
    for label in range(3):
        write_folder(tmp_path / "pictures" / str(label), images[labels == label])
    listed = sorted(p.relative_to(tmp_path) for p in (tmp_path / "pictures").rglob("*.png"))
    (tmp_path / "all.list").write_text("\n".join(map(str, listed)))

    train = (
        "train --latents s.h5 --steps 2 --batch-size 4 --device cpu --compile off --precision fp32"
    )
    flow = f"{train} --model SiT-Mi/2 --interpolant toy --prediction toy --out flow"
    chain = f"{train} --model DiT-Mi/2 --betas toy --variance toy --out chain"
    draw = "--num 4 --steps 3 --device cpu --precision fp32"
    said = run(
        package,
        tmp_path,
        "encode-latents all.list s.h5 --vae toy --crop toy --image-size 8 --device cpu --workers 0 "
        "--labels toy",
        f"{flow} --loss-weight toy --t-dist toy --schedule toy",
        f"{train} --model SiT-Mi/2 --block toy --mlp toy --norm toy --out parts",
        chain,
        f"sample flow --ode --solver toy {draw} --out a",
        f"sample flow --ode --solver toy-multi {draw} --out b",
        f"sample flow --sde --solver toy-sde --wt toy --last-step toy {draw} --out c",
        f"sample chain --ddpm {draw} --out d",
        "evaluate a --toy --features pixels --device cpu",
        "inspect flow --plot",
        "export flow/step-0000002 toy.pt --format toy",
        "export flow/step-0000002 all.safetensors --format safetensors",
        "import all.safetensors back",
        f"sample back --ode --solver toy {draw} --out e",
        "evaluate flow --nll --solver toy --steps 2 --num 2 --device cpu",
        f"{train} --model SiT-Mi/2 --out plain",
        "export plain/step-0000002 official.pt --format official-sit",
    )
    for text in said:
        assert text.startswith("0\n"), text
    assert "s.h5" in said[0]
    assert "toy" in said[8]
    assert torch.load(tmp_path / "toy.pt", weights_only=True).keys() == {"toy"}
    assert "toy, toy prediction, loss weight toy" in said[12]  # as the exported weights say
    state = torch.load(tmp_path / "official.pt", weights_only=True)
    torch.save({"ema": state, "args": Namespace(toy=True)}, tmp_path / "trained.pt")
    (text,) = run(package, tmp_path, "import trained.pt imported --vae toy --heads 4")
    assert "a toy (its trainer's arguments are a toy's)" in text
    assert "toy, velocity prediction" in text
    # The same weights and noise, through safetensors and back.
    assert _images(tmp_path / "a") == _images(tmp_path / "e")


def _images(folder: Path) -> bytes:
    return SampleSet.open(folder / "samples.h5").images.tobytes()


def test_an_export_refuses_what_it_has_no_name_for(package: Path, tmp_path: Path) -> None:
    """Catches: an unknown path taken for vp by the delivered pipeline, or a KeyError."""
    images, labels = pictures(12)
    for label in range(3):
        write_folder(tmp_path / "pictures" / str(label), images[labels == label])
    train = (
        "train --latents s.h5 --steps 1 --batch-size 4 --device cpu --compile off --precision fp32"
    )
    lines = [
        "encode-latents pictures s.h5 --vae pixels --image-size 8 --device cpu --workers 0",
        f"{train} --model SiT-Mi/2 --interpolant toy --out path",
        f"{train} --model SiT-Mi/2 --prediction toy --out prediction",
        f"{train} --model DiT-Mi/2 --betas toy --out betas",
    ]
    tries = {
        "export path x.pt --format official-sit": "lacks the path toy",
        "export prediction x.pt --format official-sit": "lacks toy prediction",
        "export betas x.pt --format official-dit": "needs betas linear, and this run has toy",
        "export path x --format diffusers": "lacks the path toy",
        "export prediction x --format diffusers": "lacks toy prediction",
    }
    said = run(package, tmp_path, *lines, *tries)
    for text in said[: len(lines)]:
        assert text.startswith("0\n"), text
    for text, words in zip(said[len(lines) :], tries.values(), strict=True):
        assert text.startswith("2\n"), text
        assert words in text
    assert not (tmp_path / "x.pt").exists()
    assert not (tmp_path / "x").exists()
