"""The pages on importing as their readers follow them."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.models.dlrm import DLRM

from embank.pipelines import load_model
from tests.pages import ROOT, Followed
from tests.training.runs import write_data


@pytest.mark.slow
def test_the_tutorial_says_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Followed(ROOT / "docs/import_tutorial.md") as page:
        page.follow()
    assert load_model("bundles/shop").score([{"user_id": "u3", "item_id": "i7", "price": 0.5}]).shape == (1,)


def test_the_reference_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With files of the names that it has."""
    monkeypatch.chdir(tmp_path)
    write_data(Path("data"), bags={}, numeric=("price",))
    words = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    lines = [f"w{number} {' '.join(map(str, row))}\n" for number, row in enumerate(words.tolist())]
    Path("vectors.txt").write_text("400 8\n" + "".join(lines))
    Path("dlrm.yaml").write_text(
        "data: {path: data, batch_size: 256}\nmodel: {name: dlrm, bottom: [4], top: [4]}\ntables: {dim: 4}\n"
        "train: {num_threads: 1}\n"
    )
    tables = [
        EmbeddingBagConfig(name=name, num_embeddings=size, embedding_dim=4, feature_names=[name])
        for name, size in (("item", 7), ("user", 50))
    ]
    dcp.save(
        {"model": DLRM(EmbeddingBagCollection(tables=tables), 1, [4, 4], [4, 1]).state_dict()}, checkpoint_id="dcp"
    )
    with Followed(ROOT / "docs/import.md") as page:
        said = page.follow()
    assert said[-1] == "item_id 17000 True torch.Size([1, 16])\n"
