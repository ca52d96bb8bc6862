"""The price of feedback: python -m tests.benchmarks.guidance.

One small model for all: a class-conditional UNet in pixels (16 x 16, channels 32 and 64) and a residual classifier,
both with random weights, 30 DDIM steps, feedback at every 5th, which is the released setting. No classifier-free
guidance, so that the plain pipeline is as cheap as it can be; --scale 5 turns it on. The peer is the released rule as
its authors run it: one sample at a time, norms and extrema over the whole tensor. Seconds are medians over rounds in
which all methods take turns, after one to warm up; where other work shares the machine compare CPU seconds. Peak memory
is that of a process of its own (on CUDA: of the allocator), above what it held with the models loaded.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from rich.console import Console
from rich.table import Table

from granary.synth.feedback.diffusion.generator import small_unet
from granary.synth.feedback.diffusion.pixel_pipeline import ClassConditionalPipeline
from granary.synth.feedback.guidance.hooks import pictures
from granary.synth.feedback.guidance.options import GuidanceOptions
from granary.synth.feedback.recipe import Sampling
from granary.synth.feedback.requests import Request
from granary.synth.feedback.sampler import Sampler
from granary.training.models.classifier import Classifier, ClassifierConfig
from tests.benchmarks.join import measure, peak_megabytes

OMEGA, STEPS, EVERY = 0.03, 30, 5
CLASSES = [str(number) for number in range(10)]
VARIANTS = {"plain": {"omega": 0.0}, "guided": {}, "guided, checkpoints": {"checkpoint": True}}


def save_models(folder, args):
    """Write generator and classifier with random weights."""
    torch.manual_seed(0)
    unet = small_unet(3, args.size, args.channels, 1, len(CLASSES))
    pipe = ClassConditionalPipeline(unet, DDIMScheduler(), {str(i): name for i, name in enumerate(CLASSES)})
    pipe.save_pretrained(folder / "generator", safe_serialization=True)
    Classifier(ClassifierConfig(tuple(CLASSES), img_size=args.size)).save(str(folder / "classifier"))


def load(folder, args, **options):
    """Return a sampler over the saved models."""
    guidance = GuidanceOptions(**{"criterion": "loss", "omega": OMEGA, "every": EVERY, **options})
    where = str(folder / "generator"), f"granary:{folder / 'classifier'}"
    return Sampler(*where, guidance, Sampling(steps=STEPS, guidance_scale=args.scale, device=args.device))


def requests(n):
    """Return n requests, all classes in turn."""
    return [Request(str(i), i, i % len(CLASSES), i % len(CLASSES)) for i in range(n)]


def released(sampler, rows, scale):
    """Draw one sample at a time by the released rule, written from its description."""
    pipe, device = sampler.pipe, sampler.device
    unet, scheduler = pipe.unet, pipe.scheduler
    return np.concatenate([released_one(sampler, unet, scheduler, row, scale, device) for row in rows])


def released_one(sampler, unet, scheduler, row, scale, device):
    """Draw one sample: (1, h, w, 3) float."""
    size = unet.config.sample_size
    z = torch.randn((1, 3, size, size), generator=torch.Generator().manual_seed(row.seed)).to(device)
    label = torch.tensor([row.label], device=device)
    scheduler.set_timesteps(STEPS, device=device)
    for i, t in enumerate(scheduler.timesteps):
        with torch.no_grad():
            eps = unet(z, t, class_labels=label).sample
            if scale > 1:
                without = unet(z, t, class_labels=torch.full_like(label, len(CLASSES))).sample
                eps = without + scale * (eps - without)
        if i % EVERY == 0:
            abar = scheduler.alphas_cumprod[t].to(device)
            leaf = z.detach().requires_grad_()
            clean = (leaf - (1 - abar).sqrt() * unet(leaf, t, class_labels=label).sample) / abar.sqrt()
            s = (1 - abar).sqrt()
            shown = pictures(s * clean + (1 - s) * leaf, "minmax")
            p = sampler.classifier.logits(shown).softmax(dim=1)
            (gradient,) = torch.autograd.grad(-p[0, row.target].log(), leaf)
            z = z + OMEGA * z.norm() * gradient / (gradient.norm() + 1e-8)
        with torch.no_grad():
            z = scheduler.step(eps, t, z).prev_sample
    return (z / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()


def compare(folder, args):
    """Print seconds for each sample of all methods, side by side."""
    rows = requests(args.batch)
    samplers = {name: load(folder, args, **options) for name, options in VARIANTS.items()}
    methods = {name: lambda own=own: own.draw(rows, args.batch) for name, own in samplers.items()}
    methods["plain, no sampler"] = lambda: plain(samplers["plain"], rows, args.scale)
    methods["released rule, batch 1"] = lambda: released(samplers["guided"], rows, args.scale)
    times = {name: [] for name in methods}
    for _ in range(args.rounds + 1):
        for name, method in methods.items():
            times[name].append(measure(method)[1:])
    medians = {name: [statistics.median(c) for c in zip(*own[1:], strict=True)] for name, own in times.items()}
    table = Table("method", "wall s / sample", "CPU s / sample", "x plain wall", "x plain CPU", "samples / s")
    base = medians["plain, no sampler"]
    for name, (wall, cpu) in medians.items():
        each = (f"{wall / args.batch:.3f}", f"{cpu / args.batch:.3f}", f"{wall / base[0]:.2f}", f"{cpu / base[1]:.2f}")
        table.add_row(name, *each, f"{args.batch / wall:.2f}")
    table.title = (
        f"batch {args.batch}, {STEPS} steps, every {EVERY}th, {torch.get_num_threads()} threads, scale {args.scale}"
    )
    Console(width=110).print(table)
    ours, theirs = medians["guided"], medians["released rule, batch 1"]
    print(f"guided: {theirs[0] / ours[0]:.1f} times the released rule's samples/s (CPU {theirs[1] / ours[1]:.1f})")
    difference = agreement(samplers["guided"], rows[:2], args.scale)
    print(f"mean difference of the pictures of both at batch 1: {difference:.2f} grey levels of 255")


def plain(sampler, rows, scale):
    """Call the pipeline as anyone would."""
    generators = [torch.Generator().manual_seed(row.seed) for row in rows]
    options = {"num_inference_steps": STEPS, "guidance_scale": scale, "output_type": "np"}
    return sampler.pipe([row.label for row in rows], generator=generators, **options).images


def agreement(sampler, rows, scale):
    """Return the mean difference between our pictures and the peer's, in grey levels; 0.25 is that of rounding."""
    ours = np.stack([found.image for found in sampler.draw(rows, 1)])
    return float(np.abs(ours - released(sampler, rows, scale) * 255).mean())


def memory(args):
    """Print peak memory of each variant, in a process of its own."""
    table = Table("method", "batch", "peak MB above the loaded models")
    for name in VARIANTS:
        for batch in (1, args.batch):
            command = [sys.executable, "-m", "tests.benchmarks.guidance", "--child", name, "--batch", str(batch)]
            command += ["--size", str(args.size), "--scale", str(args.scale), "--device", args.device]
            command += ["--channels", *map(str, args.channels)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            table.add_row(name, str(batch), answer.strip())
    Console(width=110).print(table)


def child(folder, args):
    """Draw once and print the peak of memory."""
    sampler = load(folder, args, **VARIANTS[args.child])
    load(folder, args, omega=0.0).draw(requests(1), 1)  # libraries loaded, threads started
    if sampler.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated() / 2**20
        sampler.draw(requests(args.batch), args.batch)
        print(f"{torch.cuda.max_memory_allocated() / 2**20 - start:.0f}")
        return
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts again from here
    start = peak_megabytes()
    sampler.draw(requests(args.batch), args.batch)
    print(f"{peak_megabytes() - start:.0f}")


def main():
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--scale", type=float, default=1.0, help="of classifier-free guidance; 1 is none")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        save_models(Path(name), args)
        if args.child:
            child(Path(name), args)
            return
        start = time.perf_counter()
        compare(Path(name), args)
        memory(args)
        print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
