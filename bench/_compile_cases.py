"""The calls whose launches compile_kernels.py compiles: AlexNet's training step, in three variants.

The networks run whole, through their `FusedSequential`s, as in training; what no network calls by
itself, the optimizer, the input's preparation and keyed dropout, is called beside them. CaffeNet is
there for its norms and pools that are not one op; the other variants' layers are these three's.
"""

import torch
from _compile_fake import data
from _compile_record import Case

from fastalex import AlexNet
from fastalex.kernels.images import images
from fastalex.kernels.keyed_dropout import keyed_dropout
from fastalex.kernels.sgd import momentum_sgd_
from fastalex.model import WholeWindowConv2d
from fastalex.model.blocks import take_blocks

BATCH = 128
HALVES = (torch.bfloat16, torch.float16)


def cases() -> list[Case]:
    """The networks in bfloat16, the paper's in the other dtypes, too."""
    made = [_network(variant, torch.bfloat16) for variant in ("paper", "torchvision", "caffenet")]
    made += [_network(name, torch.bfloat16, blocks=True) for name in ("paper", "torchvision")]
    for dtype in (torch.float16, torch.float32):
        made.append(_network("paper", dtype))
    for dtype in (*HALVES, torch.float32):
        made += [_optimizer(dtype), _input(dtype), _dropout(dtype)]
    made.append(_inference(_network("paper", torch.bfloat16)))
    return [*made, _in_full_float32(_network("paper", torch.float32))]


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def _network(variant: str, dtype: torch.dtype, blocks: bool = False) -> Case:
    """With `blocks` fed as fastalex-train feeds it, else with plain images."""
    with torch.device("meta"):
        model = AlexNet(variant=variant).train()
    side = model.variant.input.size
    shape = take_blocks(model.features[0], side) if blocks else None

    def call() -> object:
        held = {name: _empty(*b.shape, dtype=b.dtype) for name, b in model.named_buffers()}
        held |= {name: _empty(*p.shape, dtype=dtype) for name, p in model.named_parameters()}
        x = _empty(BATCH, 3, side, side, dtype=dtype).to(memory_format=torch.channels_last)
        if shape is not None:
            x = shape.of(x)
        elif isinstance(model.features[0], WholeWindowConv2d):
            x = model.features[0].padded(x)  # here, so that it is known to be data
        return torch.func.functional_call(model, held, (data(x),))

    return Case(variant + ", in blocks" * blocks, dtype, call)


def _optimizer(dtype: torch.dtype) -> Case:
    """The paper's parameters, with gradients in `dtype`, and copies if that is a half."""
    with torch.device("meta"):
        shapes = [p.shape for p in AlexNet().parameters()]

    def call() -> object:
        weights, velocities = ([_empty(*shape) for shape in shapes] for _ in range(2))
        grads = [_empty(*shape, dtype=dtype) for shape in shapes]
        copies = grads if dtype in HALVES else ()
        return momentum_sgd_(weights, velocities, grads, _empty(1), 0.9, 5e-4, copies=copies)

    return Case("optimizer", dtype, call)


def _input(dtype: torch.dtype) -> Case:
    """Training images, with a mean image (also space to depth) and with a mean colour."""

    def call() -> None:
        x = _empty(BATCH, 224, 224, 3, dtype=torch.uint8)
        augmented = {
            "lighting": _empty(BATCH, 3),
            "corner": _empty(BATCH, 2, dtype=torch.int64),
            "flip": _empty(BATCH, dtype=torch.bool),
        }
        image = _empty(256, 256, 3)
        images(x, image, **augmented, dtype=dtype)
        images(x, image, **augmented, dtype=dtype, space_to_depth=4, padding=(0, 4))
        images(x, _empty(3), std=57.4, dtype=dtype)

    return Case("input", dtype, call)


def _dropout(dtype: torch.dtype) -> Case:
    """By key: of one tower's half of fc6, behind its ReLU, and of torchvision's input of fc6."""

    def call() -> None:
        key = _empty(2, dtype=torch.int64)
        for relu, units in ((True, 2048), (False, 9216)):
            x = _empty(BATCH, units, dtype=dtype).requires_grad_()
            keyed_dropout(x, key, relu=relu, first_row=BATCH, first_unit=units)

    return Case("dropout", dtype, call)


def _inference(case: Case) -> Case:
    def call() -> None:
        with torch.inference_mode():
            case.call()

    return Case(f"{case.name}, inference", case.dtype, call)


def _in_full_float32(case: Case) -> Case:
    """Without the TF32 that torch's convolutions use by default."""

    def call() -> None:
        precision = torch.backends.cudnn.conv
        before, precision.fp32_precision = precision.fp32_precision, "ieee"
        try:
            case.call()
        finally:
            precision.fp32_precision = before

    return Case(f"{case.name}, no TF32", case.dtype, call)
