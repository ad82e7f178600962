"""Float master weights for a model that was exported, with new blocks behind its own."""

import numpy as np
import torch
from export import ARCH, TENSORS
from model import Block, Config, Model

from bitnet.formats import gguf, ternary_layouts

NEW_GAIN = 0.25  # of a new block's output beside one of a fresh model: it starts as a small change


def read_config(metadata):
    value = {key.removeprefix(f"{ARCH}."): v for key, v in metadata.items()}
    return Config(
        vocab_size=value["vocab_size"],
        hidden_size=value["embedding_length"],
        intermediate_size=value["feed_forward_length"],
        num_hidden_layers=value["block_count"],
        num_attention_heads=value["attention.head_count"],
        num_key_value_heads=value["attention.head_count_kv"],
        max_position_embeddings=value["context_length"],
        rope_theta=value["rope.freq_base"],
        rms_norm_eps=value["attention.layer_norm_rms_epsilon"],
    )


def values(tensor):
    data = np.frombuffer(bytes(tensor.data), {"F16": "<f2", "F32": "<f4"}[tensor.type])
    return torch.from_numpy(data.astype(np.float32).reshape(tensor.shape))


def masters(tensor, generator):
    """Weights that quantise to the tensor's codes and scale, and are free to move.

    With scale s, |w| is uniform over (0, s/2) where the code is 0; elsewhere uniform from s/2 up to
    where the mean of all |w| is s.
    """
    data, n = bytes(tensor.data), tensor.shape[0] * tensor.shape[1] // 4
    codes = ternary_layouts.unpack_i2_s(np.frombuffer(data[:n], np.uint8).reshape(1, n))
    codes = torch.from_numpy(codes.reshape(tensor.shape).astype(np.float32) - 1)
    scale = float(np.frombuffer(data[n : n + 4], "<f4")[0])
    zeros = (codes == 0).float().mean().item()
    mean = (1 - zeros / 4) / (1 - zeros)  # of |w| / s where the code is not 0
    drawn = torch.rand(codes.shape, generator=generator)
    small = (drawn - 0.5) * 0.98
    return scale * torch.where(codes == 0, small, codes * (0.51 + drawn * 2 * (mean - 0.51)))


@torch.no_grad()
def grown(path, n_new):
    """The model of a .gguf with n_new blocks more, which at first change little."""
    file = gguf.GGUFFile(path)
    config, generator = read_config(file.metadata), torch.Generator().manual_seed(1)
    model = Model(config)
    model.embed_tokens.weight.copy_(values(file.tensors["token_embd.weight"]))
    model.norm.weight.copy_(values(file.tensors["output_norm.weight"]))
    for i, layer in enumerate(model.layers):
        for source, target in TENSORS.items():
            part, tensor = getattr(layer, source), file.tensors[f"blk.{i}.{target}.weight"]
            if source.endswith("_proj"):
                part.copy_(masters(tensor, generator))
            else:
                part.weight.copy_(values(tensor))
    for _ in range(n_new):
        block = Block(config)
        block.o_proj.mul_(NEW_GAIN)
        block.down_proj.mul_(NEW_GAIN)
        model.layers.append(block)
    config.num_hidden_layers += n_new
    return model
