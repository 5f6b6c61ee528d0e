"""A training step and inference, whole network: fastalex beside the same layers in plain torch.

Two networks, never mixed: torchvision's (no normalization, no groups), written out here as it is
usually written; and the paper's, with `torch.nn.functional.local_response_norm` on each tower as
its peer. A step is forward, loss, backward and torch's SGD, dropout in. Images of 224 pixels from
one fixed batch: 16 on a CPU, 512 on a GPU.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastalex import AlexNet
from fastalex.model import LocalResponseNorm

CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


class TorchNorm(nn.Module):
    def forward(self, x):
        towers = x.chunk(2, dim=1)
        return torch.cat([F.local_response_norm(t, 5, 5e-4, 0.75, 2.0) for t in towers], dim=1)


def paper_with_torch_norm() -> nn.Module:
    model = AlexNet()
    for i, module in enumerate(model.features):
        if isinstance(module, LocalResponseNorm):
            model.features[i] = TorchNorm()
    return model


def plain_torchvision() -> nn.Module:
    relu = nn.ReLU
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), relu(inplace=True), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), relu(inplace=True), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), relu(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1), relu(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1), relu(inplace=True), nn.MaxPool2d(3, 2),
        nn.AdaptiveAvgPool2d((6, 6)), nn.Flatten(),
        nn.Dropout(), nn.Linear(9216, 4096), relu(inplace=True),
        nn.Dropout(), nn.Linear(4096, 4096), relu(inplace=True),
        nn.Linear(4096, 1000),
    )  # fmt: skip


PROVIDERS = {
    "paper": (AlexNet, CHANNELS_LAST),
    "paper-plain": (paper_with_torch_norm, CHANNELS_LAST),
    "paper-plain-nchw": (paper_with_torch_norm, CONTIGUOUS),
    "torchvision": (lambda: AlexNet(variant="torchvision"), CHANNELS_LAST),
    "torchvision-plain": (plain_torchvision, CHANNELS_LAST),
    "torchvision-plain-nchw": (plain_torchvision, CONTIGUOUS),
}
PAIRS = [(peer.split("-")[0], peer) for peer in PROVIDERS if "-" in peer]


def training_step(provider, images, device):
    """A call that runs one whole step."""
    build, layout = PROVIDERS[provider]
    model = build().to(device, memory_format=layout).train()
    x = images.to(memory_format=layout)
    labels = torch.arange(len(x), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def step():
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()

    return step


def inference(provider, images, device):
    """A call that runs one batch through the network."""
    build, layout = PROVIDERS[provider]
    model = build().to(device, memory_format=layout).eval()
    x = images.to(memory_format=layout)

    def infer():
        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"),
        ):
            model(x)

    return infer


WORK = {"step": training_step, "inference": inference}


@pytest.fixture
def images(device):
    torch.manual_seed(0)
    return torch.randn(512 if device.type == "cuda" else 16, 3, 224, 224, device=device)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("work", WORK)
def bench_model(work, provider, images, device, time_it):
    time_it(WORK[work](provider, images, device), rounds=5, images=len(images))


@pytest.mark.parametrize(("ours", "peer"), PAIRS, ids=[f"{ours}:{peer}" for ours, peer in PAIRS])
@pytest.mark.parametrize("work", WORK)
def bench_ratio(work, ours, peer, images, device, compare):
    make = WORK[work]
    compare(make(ours, images, device), make(peer, images, device), rounds=11, images=len(images))
