"""Writes tests/data/vocabulary: a byte-level BPE of 600 entries in llama-3's manner, in both forms.

tokenizer.json and tokenizer_config.json as in a Hugging Face folder, metadata.json with the keys of
a GGUF file. Run it with a text file: python tests/make_vocabulary.py TEXT
"""

import json
import sys
from pathlib import Path

from support.paths import DATA
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

FOLDER = DATA / "vocabulary"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WHOLE_WORDS = ["Zebra", "Ġquartz", "xyzzy", "987"]  # in the vocabulary, but no merges lead to them
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eot_id|>2", "[[]]"]
USER_DEFINED = ["<tool>", "é new"]


def main(text):
    learner = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learner.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner.train_from_iterator(
        text.splitlines(keepends=True),
        trainers.BpeTrainer(vocab_size=589, initial_alphabet=alphabet, show_progress=False),
    )
    model = json.loads(learner.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get) + WHOLE_WORDS
    merges = [tuple(pair) for pair in model["merges"]]
    bpe = models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, ignore_merges=True)
    made = Tokenizer(bpe)
    made.pre_tokenizer, made.decoder = learner.pre_tokenizer, decoders.ByteLevel()
    made.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL])
    made.add_tokens([AddedToken(t, normalized=False) for t in USER_DEFINED])
    bos = made.token_to_id(SPECIAL[0])
    made.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], bos)]
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "tokenizer.json").write_text(made.to_str())
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens + SPECIAL + USER_DEFINED,
        "tokenizer.ggml.token_type": [1] * len(tokens)
        + [3] * len(SPECIAL)
        + [4] * len(USER_DEFINED),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": bos,
        "tokenizer.ggml.eos_token_id": bos + 1,
        "tokenizer.ggml.add_bos_token": True,
    }
    (FOLDER / "metadata.json").write_text(json.dumps(metadata, ensure_ascii=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]).read_text(encoding="utf-8"))
