"""What is compared: the trainings, the samplers, and the tables of the study.

A cell is a row of a table: a training (a key of RUNS) and how images are drawn from it (a key of
SAMPLERS). The tables say all there is to do: what no row names is neither trained nor drawn. The
figures of the papers are FIDs on ImageNet 256, 400,000 steps, without guidance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Row:
    """One choice. `column` places it in a table of two ways; `paper` is the papers' FID."""

    label: str
    run: str
    sampler: str = "ode"
    paper: float | None = None
    column: str = ""
    paper_label: str = ""  # which of the papers' choices that is, where it has another name
    paper_gmacs: float | None = None

    @property
    def name(self) -> str:
        return f"{self.column} {self.label}".strip()


@dataclass(frozen=True)
class Claim:
    """What the papers say: the row `better` has the lower distance, or (`tie`) they are alike."""

    text: str
    better: str
    worse: str
    tie: bool = False


@dataclass(frozen=True)
class Section:
    group: str  # a letter
    title: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    text: str = ""


# --- trainings -----------------------------------------------------------------------------------

# A network smaller than the base's, the base, and one larger; Nano is Mi with overrides.
SIZES = {"Mi": ("Nano", "Mi", "Ti"), "Ti": ("Mi", "Ti", "S"), "S": ("Ti", "S", "B")}
NANO = dict(depth=2, width=64, heads=2)


def model(size: str, patch: int, family: str = "SiT") -> dict[str, Any]:
    """The options of `sit train` that name this network."""
    if size == "Nano":
        return dict(model=f"{family}-Mi/{patch}", **NANO)
    return dict(model=f"{family}-{size}/{patch}")


def runs(size: str) -> dict[str, dict[str, Any]]:
    """Name -> the options in which a training differs from `Budget.options`.

    The base has adaLN-Zero blocks and learns the velocity on the linear path.
    """
    small, size, large = SIZES[size]
    base, discrete = model(size, 2), model(size, 2, "DiT")
    score, noise, weighted = (
        dict(prediction="score"),
        dict(prediction="noise"),
        dict(loss_weight="velocity"),
    )
    vp = dict(base, interpolant="vp")
    return {
        "base": base,
        # (a) size and patch
        "small-4": model(small, 4),
        "small-2": model(small, 2),
        "small-1": model(small, 1),
        "base-4": model(size, 4),
        "base-1": model(size, 1),
        "large-4": model(large, 4),
        "large-2": model(large, 2),
        # (b) blocks
        "adaln": dict(base, block="adaln"),
        "cross-attention": dict(base, block="cross-attention"),
        "in-context": dict(base, block="in-context"),
        # (c) predictions
        "linear-score": dict(base, **score),
        "linear-score-weighted": dict(base, **score, **weighted),
        "vp-score": dict(vp, **score),
        "vp-score-weighted": dict(vp, **score, **weighted),
        "vp-noise": dict(vp, **noise),
        "vp-noise-weighted": dict(vp, **noise, **weighted),
        "vp-data": dict(vp, prediction="data"),
        # (d) the discrete process
        "ddpm-noise": discrete,
        "ddpm-noise-fixed": dict(discrete, variance="fixed-small"),
        "ddpm-score-weighted": dict(discrete, **score, **weighted),
        "ddpm-velocity": dict(discrete, prediction="velocity"),
        # (e) interpolants
        "gvp": dict(base, interpolant="gvp"),
        "vp": vp,
    }


# --- samplers ------------------------------------------------------------------------------------

EVALUATIONS = (8, 16, 32, 64, 128, 256)
WTS = ("kl", "sigma", "sin2", "kl-eta", "linear", "constant", "decreasing")
PAPER_WTS = WTS[:4]
WT_STEPS = 100

SAMPLERS: dict[str, dict[str, Any]] = {
    "ode": dict(ode=True, solver="heun", steps=25),  # 50 evaluations
    "ddpm": dict(ddpm=True, steps=250),
    **{f"heun-{n}": dict(ode=True, solver="heun", steps=n // 2) for n in EVALUATIONS},
    **{f"euler-{n}": dict(ode=True, solver="euler", steps=n) for n in EVALUATIONS},
    **{f"sde-sigma-{n}": dict(sde=True, wt="sigma", steps=n) for n in EVALUATIONS},
    **{f"sde-kl-{n}": dict(sde=True, wt="kl", steps=n) for n in EVALUATIONS},
    **{f"wt-{wt}": dict(sde=True, wt=wt, steps=WT_STEPS) for wt in WTS},
}

# --- tables --------------------------------------------------------------------------------------


# DiT Table 4: GMACs and FID of patches 8, 4, 2, which our 4, 2, 1 stand for.
PAPER_SIZES = {
    "S": ((0.36, 153.60), (1.41, 100.41), (6.06, 68.40)),
    "B": ((1.42, 122.74), (5.56, 68.38), (23.01, 43.47)),
    "L": ((5.01, 118.87), (19.70, 45.64), (80.71, 23.33)),
}


def _sizes(size: str) -> Section:
    small, base, large = SIZES[size]
    names = {f"{base}/2": "base"}
    rows = []
    for kind, ours, theirs in zip(("small", "base", "large"), SIZES[size], "SBL", strict=True):
        for patch, (gmacs, fid) in zip((4, 2, 1), PAPER_SIZES[theirs], strict=True):
            label = f"{ours}/{patch}"
            run = names.get(label, f"{kind}-{patch}")
            if run in runs(size):
                name = f"{theirs}/{2 * patch}"
                rows.append(Row(label, run, paper=fid, paper_label=name, paper_gmacs=gmacs))
    larger = [(base, small, 4), (large, base, 4), (base, small, 2), (large, base, 2)]
    larger.append((base, small, 1))
    claims = [
        Claim(f"the larger {a}/{patch} is better than {b}/{patch}", f"{a}/{patch}", f"{b}/{patch}")
        for a, b, patch in larger
    ]
    finer = [(small, 2, 4), (small, 1, 2), (base, 2, 4), (base, 1, 2), (large, 2, 4)]
    claims += [
        Claim(f"the finer {name}/{a} is better than {name}/{b}", f"{name}/{a}", f"{name}/{b}")
        for name, a, b in finer
    ]
    text = "Patches of 4, 2 and 1 latent pixels are 4, 16 and 64 tokens an image."
    return Section("a", "Size and patch", tuple(rows), tuple(claims), text)


def _blocks() -> Section:
    rows = (
        Row("adaLN-Zero", "base", paper=19.47),
        Row("adaLN", "adaln", paper=25.21),
        Row("cross-attention", "cross-attention", paper=26.14),
        Row("in-context", "in-context", paper=35.24),
    )
    claims = (
        Claim("adaLN-Zero is better than adaLN", "adaLN-Zero", "adaLN"),
        Claim("adaLN-Zero is better than cross-attention", "adaLN-Zero", "cross-attention"),
        Claim("adaLN-Zero is better than in-context", "adaLN-Zero", "in-context"),
        Claim("adaLN is better than cross-attention", "adaLN", "cross-attention"),
        Claim("cross-attention is better than in-context", "cross-attention", "in-context"),
    )
    return Section("b", "Blocks", rows, claims, "The papers' figures are of DiT-XL/2.")


def _predictions() -> Section:
    rows = (
        Row("vp velocity", "vp", paper=39.8),
        Row("vp score", "vp-score", paper=43.6),
        Row("vp score, weighted", "vp-score-weighted", paper=39.1),
        Row("vp noise", "vp-noise"),
        Row("vp noise, weighted", "vp-noise-weighted"),
        Row("vp data", "vp-data"),
        Row("linear velocity", "base", paper=34.8),
        Row("linear score", "linear-score"),
        Row("linear score, weighted", "linear-score-weighted"),
    )
    claims = (
        Claim("vp: velocity is better than score", "vp velocity", "vp score"),
        Claim("vp: weighting improves score", "vp score, weighted", "vp score"),
        Claim("vp: weighted score is as velocity", "vp score, weighted", "vp velocity", tie=True),
        Claim("linear: velocity is better than score", "linear velocity", "linear score"),
    )
    text = "Weighted: the loss times lambda_t^2, which makes it the velocity loss (SiT eq. 49)."
    return Section("c", "Prediction and weight", rows, claims, text)


def _discrete() -> Section:
    rows = (
        Row("discrete noise, learned variance, DDPM 250", "ddpm-noise", "ddpm", paper=44.2),
        Row("discrete noise, learned variance", "ddpm-noise"),
        Row("discrete noise, fixed variance, DDPM 250", "ddpm-noise-fixed", "ddpm"),
        Row("discrete noise, fixed variance", "ddpm-noise-fixed"),
        Row("discrete score, weighted", "ddpm-score-weighted"),
        Row("discrete velocity", "ddpm-velocity"),
        Row("vp noise", "vp-noise"),
        Row("vp score", "vp-score", paper=43.6),
        Row("vp score, weighted", "vp-score-weighted", paper=39.1),
        Row("vp velocity", "vp", paper=39.8),
    )
    claims = (
        Claim(
            "continuous time (vp score) is better than DDPM",
            "vp score",
            "discrete noise, learned variance, DDPM 250",
        ),
        Claim(
            "(ours, not the papers') discrete or continuous time is alike: velocity",
            "vp velocity",
            "discrete velocity",
            tie=True,
        ),
        Claim(
            "(ours, not the papers') discrete or continuous time is alike: weighted score",
            "vp score, weighted",
            "discrete score, weighted",
            tie=True,
        ),
        Claim(
            "(ours, not the papers') discrete or continuous time is alike: noise",
            "vp noise",
            "discrete noise, fixed variance",
            tie=True,
        ),
    )
    text = (
        "Rows without a sampler are drawn by the ODE, so that little but the training differs: the "
        "chain's ends with a jump to the data at its first step, vp's at t = 1e-5."
    )
    return Section("d", "Discrete or continuous time", rows, claims, text)


def _interpolants() -> Section:
    rows = (
        Row("linear", "base", paper=34.8),
        Row("gvp", "gvp", paper=34.6),
        Row("vp", "vp", paper=39.8),
    )
    claims = (
        Claim("linear is better than vp", "linear", "vp"),
        Claim("gvp is better than vp", "gvp", "vp"),
        Claim("linear and gvp are alike", "gvp", "linear", tie=True),
    )
    return Section("e", "Interpolant", rows, claims, "Velocity prediction, ODE.")


def _evaluations() -> Section:
    columns = {
        "ODE Heun": "heun",
        "ODE Euler": "euler",
        "SDE sigma": "sde-sigma",
        "SDE kl": "sde-kl",
    }
    rows = tuple(
        Row(str(n), "base", f"{key}-{n}", column=column)
        for n in EVALUATIONS
        for column, key in columns.items()
    )
    claims = (
        Claim("with 16 evaluations the ODE is better", "ODE Heun 16", "SDE sigma 16"),
        Claim("with 32 evaluations the ODE is better", "ODE Heun 32", "SDE sigma 32"),
        Claim("with 256 evaluations the SDE (sigma) is better", "SDE sigma 256", "ODE Heun 256"),
        Claim("with 256 evaluations the SDE (kl) is better", "SDE kl 256", "ODE Heun 256"),
        Claim("with 8 evaluations Heun is better than Euler", "ODE Heun 8", "ODE Euler 8"),
    )
    text = "Evaluations of the network an image; the base network. Euler-Maruyama for the SDE."
    return Section("f", "ODE or SDE", rows, claims, text)


def _diffusions() -> Section:
    papers = {
        ("vp velocity", "vp"): (37.8, 38.7, 39.2, 41.1),
        ("gvp velocity", "gvp"): (32.9, 33.4, 33.6, 33.2),
        ("linear velocity", "base"): (33.6, 33.5, 33.3, 33.0),
    }
    rows = [
        Row(wt, run, f"wt-{wt}", paper=fid, column=column)
        for (column, run), fids in papers.items()
        for wt, fid in zip(PAPER_WTS, fids, strict=True)
    ]
    rows += [
        Row(wt, "base", f"wt-{wt}", column="linear velocity") for wt in WTS if wt not in PAPER_WTS
    ]
    claims = (
        Claim("vp: kl is better than sigma", "vp velocity kl", "vp velocity sigma"),
        Claim("vp: kl is better than kl-eta", "vp velocity kl", "vp velocity kl-eta"),
        Claim("gvp: kl is better than sin2", "gvp velocity kl", "gvp velocity sin2"),
        Claim("linear: kl-eta is better than kl", "linear velocity kl-eta", "linear velocity kl"),
        Claim("linear: sin2 is better than kl", "linear velocity sin2", "linear velocity kl"),
    )
    text = f"SDE by Euler-Maruyama, {WT_STEPS} evaluations (the papers: 250)."
    return Section("g", "Diffusion coefficient w_t", tuple(rows), claims, text)


def sections(size: str) -> tuple[Section, ...]:
    """The tables, (a) to (g), of a study whose base network is of this size."""
    others = (_blocks(), _predictions(), _discrete(), _interpolants(), _evaluations())
    return (_sizes(size), *others, _diffusions())


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much work a study is. The defaults take 80 minutes on two CPU cores."""

    size: str = "Mi"
    steps: int = 1100
    batch_size: int = 32
    lr: float = 3e-3
    num: int = 1000  # images drawn for a figure

    def scaled(self, scale: float) -> Budget:
        """The same study in little, to see that it runs."""
        steps, num = int(self.steps * scale), int(self.num * scale)
        return replace(self, steps=max(2, steps), num=max(20, num))

    def options(self) -> dict[str, Any]:
        """Options of `sit train` that all trainings share."""
        return dict(
            steps=self.steps,
            batch_size=self.batch_size,
            lr=self.lr,
            schedule="cosine",
            warmup=min(50, self.steps // 10),
        )
