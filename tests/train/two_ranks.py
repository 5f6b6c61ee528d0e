"""What each of two ranks computes for test_two_ranks.py; also what one process computes.

Run by `fastalex.commands.ranks.run` as `two_ranks.py OUT DEVICE JOB...`: rank 0 puts the results
into OUT. A job is `VARIANT:MODE:MICRO_BATCHES:DTYPE:STEPS[:how]`, how: traced, by torch.compile
without its code generator, or compiled, or a --precision.
"""

import sys
from pathlib import Path
from typing import Any, get_args

import torch

from fastalex import AlexNet
from fastalex.train.config import Precision, TrainConfig
from fastalex.train.distributed import World, join
from fastalex.train.modes import mode_of
from fastalex.train.schedule import Rates
from fastalex.train.step import TrainStep

BATCH, CLASSES, SIDE = 8, 5, 99  # five classes: the ranks' shares of fc8 are unequal
RATES = Rates(weights=0.01, biases=0.02, conv1_weights=0.01, conv1_biases=0.02)


def steps_of(world: World, job: str, device: str = "cpu") -> dict[str, Any]:
    """Losses of the job's steps, the last step's gradients and the state after it, all whole."""
    variant, mode, parts, dtype, count, *how = job.split(":")
    config = TrainConfig(
        variant=variant, gpus=world.size, parallel=mode if world.size > 1 else None,
        micro_batches=int(parts), batch_size=BATCH, device=device,
        precision=how[0] if how and how[0] in get_args(Precision) else "fp32",
        compile=how == ["compiled"],
    )  # fmt: skip
    kind = getattr(torch, dtype)
    torch.manual_seed(0)
    model = AlexNet(CLASSES, variant=variant, width=0.05, init="he").to(device, kind)
    model = model.to(memory_format=torch.channels_last)
    where = torch.device(device)
    step = TrainStep(model, config, where, world.group, mode_of(config))
    if how == ["traced"]:
        network = step.network
        network._run = torch.compile(network._forward, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    losses = []
    for number in range(int(count)):
        images = torch.randn(BATCH, 3, SIDE, SIDE, dtype=kind)
        images, labels = images.to(where), torch.randint(CLASSES, (BATCH,)).to(where)
        if world.size > 1 and mode != "towers":
            mine = slice(world.rank * BATCH // world.size, (world.rank + 1) * BATCH // world.size)
            images, labels = images[mine], labels[mine]
        images = images.contiguous(memory_format=torch.channels_last)
        loss, health = step(images, labels, RATES, number)
        assert health.isfinite()
        losses.append(world.sum(loss.double()) / world.size)  # the others' are the same, or a part
    gradients = {name: p.grad for name, p in step.model.named_parameters()}
    torch.compiler.reset()
    return {
        "losses": torch.stack(losses),
        "gradients": step._join(gradients),
        "state": step.state_dict(),
        "scale": world.gather(step.scaler.get_scale()),
        "parameters": sum(p.numel() for p in step.optimizer.state),
    }


def main(out: Path, device: str, jobs: list[str]) -> None:
    torch.set_num_threads(1)
    with join(torch.device(device)) as world:
        results = {job: steps_of(world, job, device) for job in jobs}
        if world.main:
            torch.save(results, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
