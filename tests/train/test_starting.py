"""Weights that come from elsewhere, and what a finished run says when it is evaluated."""

from dataclasses import replace

import pytest
import torch

from fastalex.errors import UsageError
from fastalex.train import evaluate_run
from fastalex.train.build import build_model
from fastalex.train.log import read_log

from .conftest import SMALL, weights


def test_evaluate_run_repeats_the_last_validation(finished, dataset):
    last = [line for line in read_log(finished) if "val_loss" in line][-1]
    got = evaluate_run(finished, dataset, batch_size=5, device="cpu")
    assert got.loss == pytest.approx(last["val_loss"], rel=1e-5)
    assert got.top1_error == last["top1_error"]
    ten = evaluate_run(finished, dataset, ten_crop=True, device="cpu")
    assert ten.images == got.images
    assert ten.loss != got.loss


def test_evaluate_run_keeps_the_mean_image_of_its_training(finished, dataset):
    brighter = replace(dataset, mean_image=dataset.mean_image + 50)
    assert evaluate_run(finished, brighter, device="cpu") == evaluate_run(
        finished, dataset, device="cpu"
    )


def test_evaluate_run_refuses_other_classes(finished, dataset):
    with pytest.raises(UsageError, match=r"classes cat, dog; .* was trained on blue, green"):
        evaluate_run(finished, replace(dataset, classes=("cat", "dog")))


def test_init_from(finished, dataset, tmp_path):
    for origin in (finished, finished / "model.safetensors"):
        model = build_model(replace(SMALL, init_from=origin, seed=5), 3)
        assert torch.equal(model.features[0].weight, weights(finished)["features.0.weight"])
    with pytest.raises(UsageError, match=r"variant paper at width .* this run's is caffe"):
        build_model(replace(SMALL, variant="caffe", init_from=finished), 3)
    with pytest.raises(UsageError, match="another network"):
        build_model(replace(SMALL, width=0.1, init_from=finished / "model.safetensors"), 3)
    with pytest.raises(UsageError, match="no such file"):
        build_model(replace(SMALL, init_from=tmp_path / "absent.safetensors"), 3)


def test_init_from_with_other_classes_keeps_the_fresh_last_layer(finished, capsys):
    fresh = build_model(replace(SMALL, seed=5), 7)
    model = build_model(replace(SMALL, init_from=finished, seed=5), 7)
    assert torch.equal(model.classifier[6].weight, fresh.classifier[6].weight)
    assert torch.equal(model.features[0].weight, weights(finished)["features.0.weight"])
    assert "another number of classes" in capsys.readouterr().out


def test_a_model_on_the_cpu_is_channels_last():
    weight = build_model(SMALL, 3).features[4].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_evaluation_needs_nothing_but_the_run(finished, dataset, tmp_path):
    """Not what the run was started from, and in the precision asked for."""
    import json
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    config = json.loads((copy / "config.json").read_text())
    config["train"]["init_from"] = str(tmp_path / "gone")
    (copy / "config.json").write_text(json.dumps(config))
    full = evaluate_run(copy, dataset, device="cpu")
    half = evaluate_run(copy, dataset, device="cpu", precision="bf16")
    assert half.loss != full.loss
    assert half.loss == pytest.approx(full.loss, abs=0.05)


def test_ten_crops_of_a_center_mean_network(finished, dataset, tmp_path):
    """With a mean image that varies, the shift matters: dropping it changes the loss."""
    import json
    import shutil

    import numpy as np

    from fastalex.data.pipeline import eval_batches
    from fastalex.train.build import input_format, load_weights
    from fastalex.train.evaluation import TenCrop, evaluate
    from fastalex.train.rundir import read_config

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    config = json.loads((copy / "config.json").read_text())
    config["train"]["variant"] = "original"
    (copy / "config.json").write_text(json.dumps(config))
    state = torch.load(copy / "last.pt")
    ramp = np.linspace(0, 255, 256, dtype=np.float32)
    mean = np.ascontiguousarray(np.broadcast_to(ramp[:, None, None], (256, 256, 3)))
    state["mean_image"] = torch.from_numpy(mean)
    model = build_model(read_config(copy), 3)
    state["model"] = model.state_dict()
    torch.save(state, copy / "last.pt")
    got = evaluate_run(copy, dataset, ten_crop=True, device="cpu")
    format = input_format(read_config(copy))
    load_weights(model, state["model"], copy)
    wrong = evaluate(
        model,
        eval_batches(
            replace(dataset, mean_image=mean), format, batch_size=8, device="cpu", size=256
        ),
        device=torch.device("cpu"),
        ten_crop=TenCrop(224),
    )
    assert got.loss != pytest.approx(wrong.loss, rel=1e-6)
