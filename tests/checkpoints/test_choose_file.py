"""Which of several GGUF files is taken where nobody says, and what is said of the others."""

import os
import struct

import pytest
from support import group_models, small_models
from support.fake_hub import GGUF
from support.small_files import U32

import bitnet
from bitnet.checkpoints import hub
from bitnet.checkpoints.choose_file import REASONS, choose, ggufs, instead
from bitnet.checkpoints.model_files import model_at
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.cli import main
from bitnet.errors import FormatError

STEM = "Ternary-Bonsai-8B"
RANKED = [f"{STEM}-{end}.gguf" for end in ("PQ2_0", "Q2_0", "Q2_0_g64", "PTQ1_0")]
OTHERS = [
    f"{STEM}-F16.gguf", f"{STEM}-TQ1_0.gguf", f"{STEM}-TQ2_0.gguf", f"{STEM}-Q4_K_M.gguf",
    f"{STEM}-Q2_0-prism-fork-required.gguf", f"mmproj-{STEM}-Q2_0.gguf",
    f"{STEM}-dspark-PQ2_0.gguf",
    f"{STEM}-MTP-Q2_0.gguf", "Bonsai-8B-Q1_0.gguf", f"{STEM}-Q1_0.gguf",
]  # fmt: skip


def taken(names):
    chosen = choose(ggufs(names))
    return chosen and chosen.parts[0]


@pytest.mark.parametrize("n_gone", range(len(RANKED)))
def test_the_best_type_that_is_there(n_gone):
    names = RANKED[n_gone:]
    chosen = choose(ggufs([*OTHERS, *names]))
    assert chosen.parts == names[:1]
    assert chosen.why == list(REASONS.values())[n_gone]


def test_nothing_else_is_ever_taken():
    assert taken(OTHERS) is None
    for other in OTHERS:
        assert taken([other, RANKED[3]]) == RANKED[3]
        assert instead(other, [*OTHERS, *RANKED]) == RANKED[0]
        assert instead(other, OTHERS) is None
    for name in RANKED:
        assert instead(name, RANKED) is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["m-Q2_g64.gguf", "m-F16.gguf"], "m-Q2_g64.gguf"),
        (["m-Q2_g64.gguf", "m-Q2_0_g128.gguf", "m-f16.gguf"], "m-Q2_0_g128.gguf"),
        (["m.pq2_0.gguf", "m.q2_0.gguf"], "m.pq2_0.gguf"),
        (["m-PQ2_0-00001-of-00002.gguf", "m-PQ2_0-00002-of-00002.gguf", "m-F16.gguf"],
         "m-PQ2_0-00001-of-00002.gguf"),
        # as ever: the only one, the only one of I2_S
        (["mmproj-F16.gguf"], "mmproj-F16.gguf"),
        (["m-TQ2_0.gguf"], "m-TQ2_0.gguf"),
        (["m-I2_S.gguf", "m-PQ2_0.gguf", "m-F16.gguf"], "m-I2_S.gguf"),
        # names that do not tell
        (["a.gguf", "b.gguf"], None),
        (["m-F16.gguf", "m-TQ2_0.gguf"], None),
        (["4B-PQ2_0.gguf", "8B-PQ2_0.gguf"], None),
        (["4B-PQ2_0.gguf", "8B-Q2_0.gguf"], None),
        (["4B-PQ2_0.gguf", "8B-TQ2_0.gguf"], None),
        (["m-Q2_0_g64.gguf", "m-Q2_g64.gguf"], None),
        ([], None),
    ],
)  # fmt: skip
def test_names(names, expected):
    assert taken(names) == expected


# the hub and folders ------------------------------------------------------------------------------


def contents(names):
    return {name: name.encode() for name in names}


def test_a_pull_takes_it_and_says_why(server, no_network, caplog, capsys):
    server.add("prism/Bonsai-gguf", contents([*OTHERS, *RANKED]))
    assert main(["pull", "prism/Bonsai-gguf"]) == 0
    assert capsys.readouterr().out.endswith(f"{RANKED[0]}\n")
    assert server.fetched() == [RANKED[0]]
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    n = len(OTHERS) + len(RANKED)
    assert said == [f"prism/Bonsai-gguf: {RANKED[0]} of {n} models: {REASONS['pq2_0']}"]
    no_network()
    caplog.clear()
    assert hub.find("prism/Bonsai-gguf").name == RANKED[0]
    assert not caplog.records


def test_a_load_takes_it(server):
    server.add("prism/some", contents([OTHERS[0], RANKED[3]]) | {RANKED[2]: GGUF.read_bytes()})
    with bitnet.load("prism/some") as model:
        assert model.path.name == RANKED[2]
    assert server.fetched() == [RANKED[2]]


def test_a_repository_of_others_is_refused_with_the_list(server):
    server.add("prism/others", contents(OTHERS[:2]))
    with pytest.raises(ValueError, match=rf"which of {OTHERS[0]}, {OTHERS[1]}\? \(name one"):
        hub.pull("prism/others")


def test_one_that_is_named_is_pulled_with_a_word_on_the_better(server, caplog):
    server.add("prism/Bonsai-gguf", contents([*OTHERS, *RANKED]))
    assert hub.pull(f"prism/Bonsai-gguf:{OTHERS[1]}").name == OTHERS[1]
    assert f"{OTHERS[1]} is not as trained or cannot be used" in caplog.text
    assert f"prism/Bonsai-gguf:{RANKED[0]} can" in caplog.text
    caplog.clear()
    assert hub.pull(f"prism/Bonsai-gguf:{RANKED[3]}").name == RANKED[3]
    assert not caplog.records


def test_a_folder_of_several(tmp_path, caplog):
    folder = small_models.write(tmp_path, contents([*OTHERS, *RANKED[1:]]))
    assert model_at(folder) == folder / RANKED[1]
    n = len(OTHERS) + len(RANKED) - 1
    assert caplog.messages == [f"{folder}: {RANKED[1]} of {n} models: {REASONS['q2_0']}"]


def test_a_refused_file_names_the_one_to_take(tmp_path):
    names = [OTHERS[0], OTHERS[4], OTHERS[8]]
    folder = small_models.write(tmp_path / "alone", contents(names))
    for name in names:
        with pytest.raises(FormatError, match="; of a Ternary-Bonsai repository take the file"):
            open_checkpoint(folder / name)
    folder = small_models.write(tmp_path / "all", contents([*names, *RANKED]))
    for name in names:
        with pytest.raises(FormatError, match=f"magic.*; take {RANKED[0]}, beside it") as refused:
            open_checkpoint(folder / name)
        assert refused.value.path == folder / name and refused.value.field == "magic"
    for name in (RANKED[0], "m-Q1_0.gguf"):
        (folder / name).write_bytes(b"no GGUF at all")
    with pytest.raises(FormatError) as refused:
        open_checkpoint(folder / RANKED[0])
    assert "take" not in str(refused.value)


def test_no_other_file_of_a_rotated_model_is_advised(tmp_path):
    """All of Bonsai 2 are rotated."""
    model = group_models.gguf(group_models.base(), "Q2_0_G64")
    model.set("prism.hadamard.version", U32, struct.pack("<I", 1))
    path = tmp_path / "Ternary-Bonsai-2-27B-Q2_0-prism-fork-required.gguf"
    path.write_bytes(model.bytes())
    (tmp_path / "Ternary-Bonsai-2-27B-PQ2_0.gguf").touch()
    with pytest.raises(FormatError, match="rotated weights") as refused:
        open_checkpoint(path)
    assert "take" not in str(refused.value)


@pytest.mark.skipif(os.name != "posix", reason="no such names")
def test_no_control_characters_of_a_name_are_repeated(tmp_path):
    names = ["m\x1b[2J-F16.gguf", "m\x1b[2J-PQ2_0.gguf"]
    folder = small_models.write(tmp_path, contents(names))
    with pytest.raises(FormatError) as refused:
        open_checkpoint(folder / names[0])
    assert "take" not in str(refused.value)
