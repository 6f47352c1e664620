"""MBDC alone, ours beside a straightforward loop over heads, forward and backward in one run.

The loop follows the released structure: per head a cosine softmax, a 1 x 1 convolution, batch norm, and the paper's
figure written out with matrices of ones; then both start from the same tokens and weights and must agree. Gradients are
those a training step needs: of the tokens, the anchor (a token of the tower, or its pooled feature) and the weights.

    python tests/benchmarks/bench_mbdc.py
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch
from torch import Tensor, nn

from training.model import fast, mbdc
from training.model.branch import HeadBatchNorm

# The largest first: how much freed memory the allocator keeps depends on the largest array it has seen, and a trainer
# holds larger ones than these. The other way round, ViT-B/32 pays 2,000 page faults a turn, a quarter of its time.
CASES = [("image, ViT-B/16", 64, 196), ("image, ViT-B/32", 64, 49), ("text", 64, 77), ("image, ViT-B/16", 8, 196)]
HEADS, HEAD_WIDTH, REDUCED = 4, 128, 46


class HeadLoop(nn.Module):
    """One head after another, with the formula's matrices of ones."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(HEAD_WIDTH, REDUCED, 1, bias=False), nn.BatchNorm2d(REDUCED), nn.ReLU())

    def forward(self, anchor_BC: Tensor, tokens_BMC: Tensor) -> Tensor:
        parts = []
        for anchor_BE, tokens_BME in zip(anchor_BC.chunk(HEADS, -1), tokens_BMC.chunk(HEADS, -1), strict=True):
            weight_BM = torch.cosine_similarity(anchor_BE.unsqueeze(1), tokens_BME, dim=-1).softmax(dim=-1)
            weighted_BEM1 = (tokens_BME * weight_BM.unsqueeze(-1)).transpose(1, 2).unsqueeze(-1)
            parts.append(self.distances(self.reduce(weighted_BEM1).squeeze(-1)))
        return torch.cat(parts, dim=1)

    def distances(self, x_BRM: Tensor) -> Tensor:
        batch, width, tokens = x_BRM.shape
        eye = torch.eye(width).expand(batch, -1, -1)
        ones = torch.ones(batch, width, width)
        gram = x_BRM.bmm(x_BRM.transpose(1, 2))
        squared = ones.bmm(gram * eye) + (gram * eye).bmm(ones) - 2 * gram
        root = torch.sqrt(squared.clamp(min=0) / (2 * tokens) + 1e-5)
        centred = root - ones.bmm(root) / width - root.bmm(ones) / width + ones.bmm(root).bmm(ones) / width**2
        upper = torch.ones(width, width).triu().reshape(-1).nonzero().squeeze(-1)
        return centred.reshape(batch, -1)[:, upper]


class Batched(nn.Module):
    """The functions of `training.model.fast` with the same weights."""

    def __init__(self, loop: HeadLoop) -> None:
        super().__init__()
        self.reduce = nn.Parameter(loop.reduce[0].weight.detach().flatten(1).clone())
        self.norm = HeadBatchNorm(REDUCED)

    def forward(self, anchor_BC: Tensor, tokens_BMC: Tensor) -> Tensor:
        tokens_BMHE, anchor_BHE = tokens_BMC.unflatten(-1, (HEADS, -1)), anchor_BC.unflatten(-1, (HEADS, -1))
        reduced_BMHR = fast.weigh_and_reduce(anchor_BHE, tokens_BMHE, self.reduce)
        return fast.rectify_and_compare(self.norm(reduced_BMHR), None)


def step_seconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, taken in turns so that a busy moment meets all of them.

    CPU seconds on one thread; wall clock on more, where CPU time counts threads that only wait.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 2):
        for name, run in runs.items():
            start = clock()
            run()
            if repeat >= 2:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure(batch: int, tokens: int, repeats: int) -> tuple[dict[str, float], float, float]:
    torch.manual_seed(0)
    loop = HeadLoop()
    ours = Batched(loop)
    tokens_BMC = torch.randn(batch, tokens, HEADS * HEAD_WIDTH)
    anchor_BC = torch.randn(batch, HEADS * HEAD_WIDTH)

    leaves = [tokens_BMC.clone().requires_grad_(), anchor_BC.clone().requires_grad_()]
    pull = torch.linspace(-1, 1, HEADS * mbdc.num_triangle(REDUCED)).expand(batch, -1).contiguous()

    def both(module: nn.Module) -> list[Tensor]:
        """The value, and its gradients with respect to the tokens and the anchor."""
        out = module(leaves[1], leaves[0])
        grads = torch.autograd.grad(out, [*leaves, *module.parameters()], pull)
        return [out.detach(), *grads[:2]]

    expected, given = both(loop), both(ours)
    differences = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(given, expected, strict=True)]
    names: dict[str, Callable[[], object]] = {"loop": lambda: both(loop), "ours": lambda: both(ours)}
    with torch.no_grad():
        forward = step_seconds(
            {"loop": lambda: loop(anchor_BC, tokens_BMC), "ours": lambda: ours(anchor_BC, tokens_BMC)}, repeats
        )
    whole = step_seconds(names, repeats)
    seconds = {"loop": whole["loop"], "ours": whole["ours"], "fl": forward["loop"], "fo": forward["ours"]}
    return seconds, differences[0], max(differences[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = [
        "# MBDC alone: batched over heads beside a loop over heads",
        "",
        f"{date.today()}, torch {torch.__version__}, threads: {arguments.threads}, {platform.machine()}, float32, "
        f"{HEADS} heads of {HEAD_WIDTH} reduced to {REDUCED}, training mode, "
        f"{'CPU time' if arguments.threads == 1 else 'wall clock'}, median of {arguments.repeats} in turns.",
        f"Command: `python tests/benchmarks/bench_mbdc.py --threads {arguments.threads}`.",
        "",
        "| case | batch | tokens | loop fwd+bwd ms | ours ms | ratio | loop fwd ms | ours ms | ratio "
        "| largest difference of value, of gradient (relative) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, batch, tokens in CASES:
        s, value, grad = measure(batch, tokens, arguments.repeats)
        lines.append(
            f"| {name} | {batch} | {tokens} | {s['loop'] * 1e3:.1f} | {s['ours'] * 1e3:.1f} "
            f"| {s['loop'] / s['ours']:.2f} "
            f"| {s['fl'] * 1e3:.1f} | {s['fo'] * 1e3:.1f} | {s['fl'] / s['fo']:.2f} | {value:.1e}, {grad:.1e} |"
        )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
