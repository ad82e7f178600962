"""The paragraphs of a folder of texts that are nearest to a question in meaning.

python examples/search.py FOLDER "a question" [MODEL], where MODEL is an embedding model; without
one microsoft/bitnet-embedding-0.6b is pulled from the hub.
"""

import sys
from pathlib import Path

import numpy as np

import bitnet

folder, question = Path(sys.argv[1]), sys.argv[2]
path = sys.argv[3] if len(sys.argv) > 3 else "microsoft/bitnet-embedding-0.6b"

passages = [
    (file, paragraph.strip())
    for file in sorted(folder.rglob("*.txt"))
    for paragraph in file.read_text("utf-8").split("\n\n")
    if paragraph.strip()
]

with bitnet.load(path, slots=4) as model:  # with slots several texts share a forward pass
    vectors = model.embed([text for _, text in passages])  # float32 (n, hidden_size), of length 1
    # Such models want a sentence in front of questions, where their author gave one.
    prompt_name = "query" if "query" in model.prompts else None
    query = model.embed(question, prompt_name=prompt_name)

cosines = vectors @ query
for i in np.argsort(-cosines)[:3]:
    file, text = passages[i]
    print(f"{cosines[i]:.3f}  {file.relative_to(folder)}: {' '.join(text.split())[:70]}")
