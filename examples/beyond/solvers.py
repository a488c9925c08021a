"""Every solver's error at equal evaluations, against 1000 steps of Heun.

    python examples/beyond/solvers.py RUN_OR_STEP --out solvers/

Root mean square over 16 images' latents, divided by the latents' own deviation; the same noise
for all. It writes solvers.md, solvers.png and solvers.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
import torch

from sitcli import names
from sitcli.core.flow import Ode
from sitcli.core.guidance import Guidance, GuidedNetwork
from sitcli.runs.checkpoint import open_checkpoint

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EVALUATIONS = (5, 8, 10, 16, 20, 25, 32, 50, 100)
EACH = {"heun": 2, "rk4": 4}
IMAGES, REFERENCE_STEPS = 16, 1000


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--cfg-scale", type=float, default=1.0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = open_checkpoint(args.checkpoint)
    config, process = checkpoint.config, checkpoint.process
    network = checkpoint.network("ema", torch.device("cpu"))
    noise = torch.randn(IMAGES, *config.latent_shape, generator=torch.Generator().manual_seed(0))
    y = torch.arange(IMAGES) % max(1, config.num_classes)

    def draw(ode: Ode) -> tuple[torch.Tensor, float]:
        guidance = Guidance(null_class=config.null_class, scale=args.cfg_scale)
        guided = GuidedNetwork(network, guidance)
        *_, (_, x) = process.sample(guided, noise, y, ode)
        return x, guided.evaluations / IMAGES

    reference, _ = draw(Ode(solver="heun", steps=REFERENCE_STEPS))
    deviation = float(reference.std())

    def error(ode: Ode) -> tuple[float, float]:
        x, spent = draw(ode)
        return float((x - reference).square().mean().sqrt()) / deviation, spent

    errors: dict[str, dict[float, float]] = {}
    for solver in names.ODE_SOLVERS:
        if solver == "dopri5":
            runs = [Ode(solver=solver, rtol=r, atol=r) for r in (1e-1, 1e-2, 1e-3, 1e-4)]
        else:
            each = EACH.get(solver, 1)
            runs = [Ode(solver=solver, steps=n // each) for n in EVALUATIONS if n % each == 0]
        found = (error(ode) for ode in runs)
        errors[solver] = {spent: value for value, spent in found}
    write(args.out, errors, args.cfg_scale)


def write(out: Path, errors: dict[str, dict[float, float]], scale: float) -> None:
    (out / "solvers.json").write_text(json.dumps(dict(cfg_scale=scale, errors=errors), indent=1))
    columns = [n * (1 if scale == 1 else 2) for n in EVALUATIONS]
    lines = [
        f"| evaluations | {' | '.join(map(str, columns))} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    picture, axes = plt.subplots(figsize=(6, 4))
    for solver, row in errors.items():
        if solver != "dopri5":
            words = [f"{row[n]:.2e}" if n in row else "" for n in columns]
            lines.append(f"| {solver} | {' | '.join(words)} |")
        axes.plot([*row], [*row.values()], marker="o", ms=4, label=solver)
    adaptive = ", ".join(f"{value:.1e} with {n:.0f}" for n, value in errors["dopri5"].items())
    lines.append(f"\ndopri5, which chooses its steps: {adaptive}.")
    (out / "solvers.md").write_text("\n".join(lines) + "\n")
    axes.set(xscale="log", yscale="log", xlabel="evaluations an image", ylabel="error / deviation")
    axes.legend()
    picture.tight_layout()
    picture.savefig(out / "solvers.png", dpi=100)


if __name__ == "__main__":
    main()
