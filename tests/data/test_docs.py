"""docs/data.md: its reading example runs, and says what fastalex says."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastalex.data import Dataset

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_reading_example_reads(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "tarfile.open" in block]
    monkeypatch.chdir(dataset.root.parent)
    names: dict = {}
    exec(example.replace("OUT/", f"{dataset.root.name}/"), names)
    expected = Image.open(io.BytesIO(dataset.train.read(7)))
    assert np.array_equal(np.asarray(names["image"]), np.asarray(expected))
    assert names["label"] == dataset.classes[dataset.train.labels[7]]
    members = names["members"]
    assert len(members) == 2 * len(dataset.train)
    assert [name for name, _ in members[14:16]] == ["000000007.jpg", "000000007.cls"]
    assert members[14][1] == bytes(dataset.train.read(7))
    assert int(members[15][1]) == dataset.train.labels[7]


def test_dali_reads_the_shards_by_their_index(dataset: Dataset) -> None:
    import nvidia.dali.fn as fn
    from nvidia.dali.pipeline import Pipeline

    pipeline = Pipeline(batch_size=40, num_threads=1, device_id=None)
    with pipeline:
        jpeg, label = fn.readers.webdataset(
            paths=[str(dataset.root / "train-00000.tar")],
            index_paths=[str(dataset.root / "train-00000.idx")],
            ext=["jpg", "cls"],
        )
        pipeline.set_outputs(jpeg, label)
    jpegs, labels = pipeline.run()
    for i in range(40):
        assert np.array_equal(np.asarray(jpegs.at(i)), dataset.train.read(i))
        assert int(bytes(np.asarray(labels.at(i)))) == dataset.train.labels[i]
