"""A small model that was trained, so it talks, and what its keys and values take."""

from support.paths import DATA

TALKER = DATA / "hf_bitnet_offline"


def kv_bytes(model):
    return model.memory().pool.by_purpose["kv"][0]
