"""Vocabularies as files hold them: from text to token ids and from ids to what they stand for.

Three kinds of source: tokenizer.json and tokenizer.model of a Hugging Face folder, and the metadata
of a GGUF file. Here every special token in a text is text; the tokenizer looks for special tokens
itself.
"""

from . import from_gguf, from_hf


def from_source(source, config):
    """The Vocabulary of a source.TokenizerSource, None where it holds none.

    config: the ModelConfig, for vocab_size and the ids of the begin and end tokens. FormatError for
    a vocabulary that is damaged or of a kind this version does not read.
    """
    if source.tokenizer_json is not None:
        return from_hf.from_json(source.tokenizer_json, source.tokenizer_config, config)
    if source.sentencepiece is not None:
        return from_hf.from_model(source.sentencepiece, source.tokenizer_config, config)
    if source.metadata and "tokenizer.ggml.model" in source.metadata:
        return from_gguf.from_metadata(source.path, source.metadata, config)
    return None
