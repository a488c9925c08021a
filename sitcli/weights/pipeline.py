"""Draws images from DiT and SiT weights with diffusers alone; `sit export` puts it beside them.

    pipe = DiffusionPipeline.from_pretrained(DIR, custom_pipeline=DIR, trust_remote_code=True)
    images = pipe(class_labels=[207, 360], guidance_scale=1.5).images

A stock DiTTransformer2DModel embeds times with other frequencies than DiT, and by default it adds
1e-5 in its LayerNorms where DiT adds 1e-6. This sets both as the weights were trained.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from PIL import Image


def linear(t):
    """alpha = 1 - t, sigma = t."""
    return 1 - t, t, -1.0, 1.0


def gvp(t):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""
    half = math.pi / 2
    alpha, sigma = math.cos(half * t), math.sin(half * t)
    return alpha, sigma, -half * sigma, half * alpha


def vp(t):
    """alpha = exp(-1/2 int_0^t beta), beta from 0.1 to 20; sigma = sqrt(1 - alpha^2)."""
    log_alpha = -0.5 * (0.1 * t + 0.5 * 19.9 * t**2)
    alpha, sigma = math.exp(log_alpha), math.sqrt(-math.expm1(2 * log_alpha))
    d_alpha = -0.5 * (0.1 + 19.9 * t) * alpha
    return alpha, sigma, d_alpha, -alpha * d_alpha / sigma


# alpha, sigma and their derivatives of x_t = alpha x_* + sigma eps at a time; t = 0 is the data.
PATHS = {"linear": linear, "gvp": gvp, "vp": vp}


def from_noise(eps, x, alpha, sigma):
    """The data and the noise, of a prediction of the noise."""
    return (x - sigma * eps) / alpha, eps


# (output, x, alpha, sigma) -> the data and the noise; a velocity is decoded where it is read.
PREDICTIONS = {
    "score": lambda s, x, alpha, sigma: from_noise(-sigma * s, x, alpha, sigma),
    "noise": from_noise,
    "data": lambda data, x, alpha, sigma: (data, (x - alpha * data) / sigma if sigma else data),
}
# (v, low, high, i) -> log variance of a step: v is the network's, low and high the posterior's
# and beta's, i the step.
VARIANCES = {
    "learned-range": lambda v, low, high, i: (v + 1) / 2 * high + (1 - v) / 2 * low,
    "fixed-small": lambda v, low, high, i: torch.tensor(low),
    "fixed-large": lambda v, low, high, i: torch.tensor(high if i else low),
}


# What `sit` may say, and the values that this file knows. Anything else would change the samples.
TRAINING = {"loss_weight", "direction"}  # changes no samples
OF_ALL = {"interpolant", "prediction", "time_convention", "num_classes",
          "guided_channels", "scaling", "shift", "pixels", "mlp_eps", "own_embedders"}  # fmt: skip
KNOWN = {
    "interpolant": (*PATHS, "ddpm"),
    "prediction": ("velocity", *PREDICTIONS),
    "variance": tuple(VARIANCES),
    "time_convention": ("paper", "reversed"),
    "guided_channels": ("all", "3"),
}


def check_facts(sit):
    """Raise ValueError for facts of model_index.json that this pipeline cannot draw by."""
    if not isinstance(sit, dict):
        raise ValueError("model_index.json has no `sit`, so this is not an export of sit")
    own = {"betas", "variance"} if "betas" in sit else {"interval", "t_shift"}
    needed = OF_ALL | own
    unknown, missing = sorted(set(sit) - needed - TRAINING), sorted(needed - set(sit))
    if unknown or missing:
        what = f"says {unknown[0]}, unknown" if unknown else f"lacks {missing[0]}, needed"
        raise ValueError(f"model_index.json {what} to this pipeline.py: export the run again")
    for name, known in KNOWN.items():
        if name in sit and sit[name] not in known:
            raise ValueError(f"this pipeline knows {', '.join(known)}, not {name} {sit[name]}")
    if "betas" in sit and (sit["prediction"], sit["interpolant"]) != ("noise", "ddpm"):
        raise ValueError(f"this pipeline's chain predicts noise, not {sit['prediction']}")
    if "betas" not in sit and len(sit["interval"]) != 5:
        raise ValueError("model_index.json says an interval unknown to this pipeline.py")


def shifted(t, shift):
    """A time in [0, 1], moved towards the noise."""
    return shift * t / (1 + (shift - 1) * t)


def decode_frame(vae, z):
    """A picture is a video of one frame."""
    return vae.decode(z[:, :, None]).sample[:, :, 0]


def decode_patches(vae, z):
    """Each channel of `vae` is a patch of channels in `z`, in order of its rows."""
    return vae.decode(torch.nn.functional.pixel_shuffle(z, vae.config.patch_size[0])).sample


# (vae, unscaled latents) -> images in [-1, 1], by the class of the vae.
DECODERS = {
    **dict.fromkeys(
        ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"), lambda vae, z: vae.decode(z).sample
    ),
    **dict.fromkeys(("AutoencoderKLQwenImage", "AutoencoderKLWan"), decode_frame),
    "AutoencoderKLFlux2": decode_patches,
    "AutoencoderRAE": lambda vae, z: 2 * vae.decode(z).sample - 1,
}


def spaced(count, steps):
    """`steps` of `count` diffusion steps, both ends among them."""
    if steps == 1:
        return [count - 1]
    place, kept = 0.0, []
    for _ in range(steps):
        kept.append(round(place))
        place += (count - 1) / (steps - 1)
    return kept


class SitPipeline(DiffusionPipeline):
    """A DiTTransformer2DModel with SiT's or DiT's sampler; `sit` says which (see model_index.json).

    sit: interpolant, prediction, interval, t_shift, time_convention of a flow, betas and variance
    of a diffusion; guided_channels; num_classes; scaling and shift of the latents, a number or one
    per channel; pixels, whether the latents are the picture; mlp_eps, of the norm before the MLP;
    own_embedders, whether diffusers trained the weights, with its frequencies.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ("vae",)

    def __init__(self, transformer, vae=None, sit=None):
        super().__init__()
        check_facts(sit)
        self.register_modules(transformer=transformer, vae=vae)
        self.register_to_config(sit=sit)
        self.sit = sit
        for block in transformer.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = int(sit["own_embedders"])
            block.norm1.norm.eps, block.norm3.eps = 1e-6, sit["mlp_eps"]

    @torch.no_grad()
    def __call__(
        self,
        class_labels,
        guidance_scale=1.0,
        num_inference_steps=None,
        solver=None,
        eta=0.0,
        generator=None,
        latents=None,
        output_type="pil",
    ):
        """Images of `class_labels`, a list of class numbers.

        solver: heun (default, 50 steps) or euler for SiT; ddim (default, 50 steps) or ddpm (250)
        for DiT, whose eta is DDIM's. latents: the noise to begin with, (N, C, h, w); generator:
        one, or a list with one for each image. output_type: pil, or latent for a tensor.
        """
        config = self.transformer.config
        shape = (len(class_labels), config.in_channels, config.sample_size, config.sample_size)
        device, dtype = self._execution_device, self.transformer.dtype
        y = torch.tensor(class_labels, device=device)

        def randn():
            if isinstance(generator, list):
                rows = [torch.randn(shape[1:], generator=g, device=g.device) for g in generator]
                return torch.stack(rows).to(device, dtype)
            where = generator.device if generator is not None else device
            return torch.randn(shape, generator=generator, device=where).to(device, dtype)

        def network(x, t):
            t = x.new_full((len(x),), t)
            if guidance_scale == 1:
                return self.transformer(x, t, class_labels=y).sample
            null = torch.full_like(y, self.sit["num_classes"])
            both = self.transformer(
                torch.cat([x, x]), torch.cat([t, t]), class_labels=torch.cat([y, null])
            ).sample
            c, u = both.chunk(2)
            guided = 3 if self.sit["guided_channels"] == "3" else x.shape[1]
            some = u[:, :guided] + guidance_scale * (c[:, :guided] - u[:, :guided])
            return torch.cat([some, c[:, guided:]], dim=1)

        x = randn() if latents is None else latents.to(device, dtype)
        discrete = "betas" in self.sit
        solver = solver or ("ddim" if discrete else "heun")
        steps = num_inference_steps or (250 if solver == "ddpm" else 50)
        if solver in ("ddim", "ddpm") and discrete:
            x = self.sample_chain(network, x, steps, eta if solver == "ddim" else None, randn)
        elif solver in ("heun", "euler") and not discrete:
            x = self.sample_flow(network, x, steps, solver)
        else:
            raise ValueError(f"solver '{solver}' is not for this model: heun and euler are SiT's, "
                             "ddim and ddpm DiT's")  # fmt: skip
        if output_type == "latent":
            return ImagePipelineOutput(images=x)
        return ImagePipelineOutput(images=self.decode(x))

    def sample_flow(self, network, x, steps, solver):
        """The probability-flow ODE from noise to data, in steps that are equal before the shift."""
        start, end, jump, scale, jump_from = self.sit["interval"]
        path, prediction = PATHS[self.sit["interpolant"]], self.sit["prediction"]
        reverse = self.sit["time_convention"] == "reversed"

        def decoded(x, t):
            """The velocity and the posterior mean of the data."""
            t = torch.tensor(t, dtype=x.dtype).item()  # as the network is told it
            alpha, sigma, d_alpha, d_sigma = path(t)
            out = network(x, 1 - t if reverse else t)[:, : x.shape[1]]
            if prediction == "velocity":
                v = -out if reverse else out
                return v, (d_sigma * x - sigma * v) / (alpha * d_sigma - sigma * d_alpha)
            data, eps = PREDICTIONS[prediction](out, x, alpha, sigma)
            return d_alpha * data + d_sigma * eps, data

        last, equal = (jump_from, steps - 1) if jump_from and steps > 1 else (end, steps)
        shift = self.sit["t_shift"]
        first, final = shifted(start, 1 / shift), shifted(last, 1 / shift)
        inner = [first + (final - first) * k / equal for k in range(1, equal)]
        times = [start] + [shifted(t, shift) for t in inner] + [last]
        times += [end] * (equal < steps)
        x = scale * x
        for t, s in self.progress_bar(list(pairwise(times))):
            v, data = decoded(x, t)
            if jump and s == end:
                x = data
            elif solver == "euler":
                x = x - (t - s) * v
            else:
                x = x - (t - s) / 2 * (v + decoded(x - (t - s) * v, s)[0])
        return x

    def sample_chain(self, network, x, steps, eta, randn):
        """DDIM with this eta, or for None ancestral sampling, over `steps` of the chain's steps."""
        betas = torch.tensor(self.sit["betas"], dtype=torch.float64)
        kept = spaced(len(betas), steps)
        alpha_bar = torch.cumprod(1 - betas, 0)[kept]
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        betas = 1 - alpha_bar / before
        variance = betas * (1 - before) / (1 - alpha_bar)
        variance[0] = variance[1] if steps > 1 else betas[0]
        for i in self.progress_bar(list(reversed(range(steps)))):
            now, then = alpha_bar[i].item(), before[i].item()
            out = network(x, float(kept[i]))
            eps, v = out[:, : x.shape[1]], out[:, x.shape[1] :]
            data = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
            if eta is not None:
                std = eta * math.sqrt((1 - then) / (1 - now) * (1 - now / then))
                x = math.sqrt(then) * data + math.sqrt(max(0.0, 1 - then - std**2)) * eps
                if std and i:
                    x = x + std * randn()
                continue
            beta = betas[i].item()
            x = (beta * math.sqrt(then) * data + (1 - then) * math.sqrt(1 - beta) * x) / (1 - now)
            low, high = math.log(variance[i].item()), math.log(beta)
            log_variance = VARIANCES[self.sit["variance"]](v, low, high, i)
            if i:
                x = x + (0.5 * log_variance).exp() * randn()
        return x

    def decode(self, x):
        """Latents to PIL images."""
        scaling, shift = (
            torch.as_tensor(self.sit[name], dtype=torch.float32, device=x.device).reshape(-1, 1, 1)
            for name in ("scaling", "shift")
        )
        z = x / scaling + shift
        if self.vae is not None:
            decode = DECODERS.get(type(self.vae).__name__)
            if decode is None:
                raise ValueError(
                    f"this pipeline does not know how {type(self.vae).__name__} decodes"
                )
            z = decode(self.vae, z.to(self.vae.dtype))
        elif not self.sit["pixels"]:
            raise ValueError("this folder has no vae: use output_type='latent'")
        bytes_ = (127.5 * z.float() + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        return [Image.fromarray(image.numpy()) for image in bytes_.cpu()]
