"""The training recipes, each a function that returns a TrainConfig.

`recipe(name, device)` is what `fastalex-train --recipe` starts from; options override it.
"""

from dataclasses import replace

import torch

from fastalex.train.config import RecipeName, TrainConfig

_BASE = TrainConfig()


def paper(device: str) -> TrainConfig:
    """The paper as printed, section 5: batch 128, lr .01 / 10 on plateaus, about 90 passes."""
    return replace(_BASE, recipe="paper", variant="paper", **_arithmetic(device))


def original(device: str) -> TrainConfig:
    """As it was run in 2012 (layer-params-145.cfg): the rates by hand and by layer, biases at twice
    the first rate and without decay, the colour noise's shrink, conv1 frozen late, 91 passes."""
    return replace(
        _BASE,
        recipe="original",
        variant="original",
        schedule="original",
        epochs=91,
        bias_lr_scale=2.0,
        bias_decay=False,
        lighting_shrink=True,
        **_arithmetic(device),
    )


def caffe(device: str) -> TrainConfig:
    """bvlc_alexnet's solver: batch 256, lr .01 / 10 every 100,000 of 450,000 iterations, which are
    20 of 90 passes over ILSVRC-2012; biases at twice the rate, without decay; no colour noise."""
    return replace(
        _BASE,
        recipe="caffe",
        variant="caffe",
        batch_size=256,
        schedule="step",
        step_epochs=20.0,
        bias_lr_scale=2.0,
        bias_decay=False,
        lighting=0.0,
        **_arithmetic(device),
    )


def modern(device: str) -> TrainConfig:
    """What one would do today with the same layers.

    Batch norm in place of LRN: bears the large rate (Ioffe and Szegedy 2015). Batch 1024, to keep
    a GPU busy, with the paper's .01 for 128 images scaled to it linearly, .08, and five passes of
    warm-up (Goyal et al. 2017). Cosine: no milestones to tune (Loshchilov and Hutter 2017). Label
    smoothing .1 (Szegedy et al. 2016). Decay 5e-5 on weights only: with batch norm, decay acts as
    a rate (van Laarhoven 2017), and biases and scales need none (He et al. 2019, "Bag of tricks").
    bf16: fp32's range, no loss scaling.
    """
    return replace(
        _BASE,
        recipe="modern",
        variant="batchnorm",
        batch_size=1024,
        lr=0.08,
        schedule="cosine",
        warmup_epochs=5.0,
        weight_decay=5e-5,
        bias_decay=False,
        label_smoothing=0.1,
        **_arithmetic(device),
    )


def demo(device: str) -> TrainConfig:
    """Minutes on the built-in digits. The paper's initialisation needs far longer than that to
    leave ln(10), so: He's, on inputs of about unit variance, and on a CPU a quarter of the width.
    Digits are not mirrored and have no colour."""
    return replace(
        _BASE,
        recipe="demo",
        variant="paper",
        width=1.0 if device == "cuda" else 0.25,
        init="he",
        input_std=64.0,
        batch_size=32,
        epochs=12,
        schedule="cosine",
        lighting=0.0,
        flip=False,
        **_arithmetic(device),
    )


RECIPES = {"demo": demo, "paper": paper, "original": original, "caffe": caffe, "modern": modern}


def recipe(name: RecipeName, device: str) -> TrainConfig:
    """The recipe called `name` for a run on `device`, "cuda" or "cpu"."""
    return RECIPES[name](device)


def _arithmetic(device: str) -> dict[str, object]:
    """bf16 where the hardware multiplies it; torch.compile where it soon repays its start."""
    if device == "cuda":
        fast_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return {"precision": "bf16" if fast_bf16 else "fp16", "compile": True}
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not in every supported torch
    fast_bf16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return {"precision": "bf16" if fast_bf16 else "fp32", "compile": False}
