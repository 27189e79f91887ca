"""Rows 14 to 16, every way: metadata made to cost, pickles made to run, and numbers that are none in every type.

Metadata failures within 2 s and 200 MB are measured in child processes; what costs nothing runs in this one.
"""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from localmoe.cli import main
from localmoe.converters.output import TensorHeader, header_bytes, padded
from localmoe.converters.source import MetaValue
from localmoe.gguf_file import open_gguf
from localmoe.quants.formats import FORMATS
from tests.acceptance.command import together
from tests.checkpoints import Tiny, write_checkpoint, write_raw_safetensors
from tests.pickles import TABLE, text, write_torch
from tests.tiny import tiny_weights, write_tiny

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# --- row 14: files made to take memory or time -----------------------------------------------------------------------


def costly(folder: Path) -> Iterator[tuple[Path, str]]:
    """(a checkpoint's folder, what the refusal says)."""
    for i, name in enumerate(("config.json", INDEX, "tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        made = write_checkpoint(folder / f"hole{i}", Tiny(n_layer=1))
        (made / name).write_bytes(b"{")
        os.truncate(made / name, 200_000_000)
        yield made, f"{name}: file is too large"
    nested, entry = '{"a":[' + "{}," * 3_000_000, '"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    for name in ("config.json", "tokenizer.json", INDEX):
        made = write_checkpoint(folder / f"nested-{name}", Tiny(n_layer=1))
        (made / name).write_text(nested)
        yield made, f"{name}: JSON holds too many values"
    long = write_checkpoint(folder / "long", Tiny(n_layer=1))
    (long / "tokenizer.json").write_text('{"a": "' + "a" * 37_900_000)
    yield long, "tokenizer.json: is not valid JSON"
    headers = {
        "nested": (nested[:4_900_000], "too many values"),
        "entries": ("{" + ",".join(entry % i for i in range(80_000)) + "}", "too many values"),
        "brackets": ("[" * 250_000, "is not valid JSON"),
        "twice": ('{"a": {}, "a": {}}', "appears twice"),
    }
    for name, (header, part) in headers.items():
        made = write_checkpoint(folder / name, Tiny(n_layer=1))
        write_raw_safetensors(made / WEIGHTS, header, b"")
        yield made, part


def test_row_14_what_is_made_to_cost_is_refused_soon(tmp_path: Path) -> None:
    cases = dict(costly(tmp_path))
    out = tmp_path / "out.gguf"
    out.write_bytes(b"older output")
    answers = together(*(("convert", folder, "-o", out, "--type", "F16") for folder in cases))
    for (folder, part), answer in zip(cases.items(), answers, strict=True):
        answer.failed(3, f"error: {folder}", part).quickly()
    assert out.read_bytes() == b"older output"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# --- row 15: pickles -------------------------------------------------------------------------------------------------


def old_tar(mark: Path) -> bytes:
    """A file of PyTorch before 0.1.10: a tar of pickles."""
    packed, pickle = io.BytesIO(), f"cos\nmkdir\n(S'{mark}'\ntR.".encode()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            member = tarfile.TarInfo(name)
            member.size = len(pickle)
            archive.addfile(member, io.BytesIO(pickle))
    return packed.getvalue()


def hostile(mark: Path) -> dict[str, tuple[bytes, str]]:
    """name -> (the pickle inside a zip of torch.save, or a whole file, which is no zip; what the refusal says)."""
    made = f"S'{mark}'\n".encode()
    code = text(f"__import__('os').mkdir({str(mark)!r})")
    call = b"cos\nmkdir\n(" + made + b"tR"
    nested = b"cos\nmkdir\n" + text(str(mark)) + b"\x85R"
    huge = b")q\x00" + b"".join(b"h%c" % i * 2 + b"\x86q%c" % (i + 1) for i in range(90))
    refused = "could run code: refused, and not run"
    return {
        "os.system": (b"\x80\x02cos\nsystem\n" + text(f"mkdir {mark}") + b"\x85R.", refused),
        "posix.mkdir in protocol 0": (call + b".", refused),
        "builtins.eval": (b"\x80\x02cbuiltins\neval\n" + code + b"\x85R.", refused),
        "in a table's value": (b"\x80\x02" + TABLE + text("x") + nested + b"s.", refused),
        "in a list in a tuple": (b"\x80\x02(](" + nested + b"et.", refused),
        "as a name": (b"\x80\x02" + TABLE + nested + text("x") + b"s.", refused),
        "as a persistent id": (b"\x80\x02" + nested + b"Q.", refused),
        "in a tensor's arguments": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + nested + b"tR.", refused),
        "in a parameter's arguments": (b"\x80\x02ctorch._utils\n_rebuild_parameter\n(" + nested + b"tR.", refused),
        "NEWOBJ": (b"\x80\x02csubprocess\nPopen\n" + text(f"mkdir {mark}") + b"\x85\x81.", refused),
        "NEWOBJ of an allowed name": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "instruction NEWOBJ"),
        "NEWOBJ_EX": (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "instruction NEWOBJ_EX"),
        "OBJ": (b"(cos\nmkdir\n" + made + b"o.", refused),
        "INST": (b"(" + text(str(mark)) + b"ios\nmkdir\n.", "instruction INST"),
        "BUILD with __setstate__": (b"\x80\x02" + TABLE + b"}" + text("__setstate__") + b"cos\nsystem\nsb.", refused),
        "a table's state": (b"\x80\x02" + TABLE + text("a") + b"b.", "an object's state"),
        "a name with a dot": (b"\x80\x04" + text("torch._utils") + text("os.mkdir") + b"\x93.", refused),
        "an extension": (b"\x80\x02\x82\x01.", "instruction EXT1"),
        "values of values": (b"\x80\x04" + huge + huge + b"\x93.", refused),
        "a bomb of instructions": (b"\x80\x02" + b"(" * 600_000 + b".", "more than 524288 instructions"),
    }  # fmt: skip


def test_row_15_no_pickle_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --allow-pickle: each is refused with its file's name, and nothing that it asks for happens."""
    mark, out = tmp_path / "ran", tmp_path / "out.gguf"
    folder = write_checkpoint(tmp_path / "m", Tiny(n_layer=1))
    (folder / WEIGHTS).unlink()
    file = folder / "pytorch_model.bin"
    for case, (program, part) in hostile(mark).items():
        write_torch(file, {"x": np.ones(2, np.float32)}, program=program)
        assert main(["convert", str(folder), "-o", str(out), "--type", "F16", "--allow-pickle"]) == 3, case
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {file}: "), (case, error)
        assert part in error, (case, error)
    assert not mark.exists()
    assert not out.exists()


def containers(folder: Path, mark: Path) -> Iterator[tuple[Path, str]]:
    """Files that are no plain zip of torch.save; (folder, what the refusal says)."""
    deflated = {"compression": zipfile.ZIP_DEFLATED}
    program = b"\x80\x02" + TABLE + b"."
    for i, kind in enumerate(("tar", "bare", "bomb", "big bomb", "outside")):
        made = write_checkpoint(folder / f"container{i}", Tiny(n_layer=1))
        (made / WEIGHTS).unlink()
        file = made / "pytorch_model.bin"
        if kind == "tar":
            file.write_bytes(old_tar(mark))
            yield made, "is no zip file of torch.save"
        elif kind == "bare":
            file.write_bytes(f"cos\nmkdir\n(S'{mark}'\ntR.".encode())
            yield made, "is no zip file of torch.save"
        elif kind == "bomb":
            write_torch(file, {"x": np.zeros(4, np.float32)}, program=program + bytes(100_000_000), **deflated)
            yield made, "is compressed"
        elif kind == "big bomb":
            write_torch(file, {"x": np.zeros(4, np.float32)}, program=program + bytes(20_000_000))
            yield made, "is too large"
        else:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("/etc/x/data.pkl", program)
                archive.writestr("../../data.pkl", program)
            yield made, "has no data.pkl"


def test_row_15_bombs_and_other_containers(tmp_path: Path) -> None:
    """A tar of 2016, a bare pickle, compressed and large pickles, members that lead outside: within 2 s and 200 MB."""
    cases = dict(containers(tmp_path, tmp_path / "ran"))
    out = tmp_path / "out.gguf"
    answers = together(*(("convert", folder, "-o", out, "--allow-pickle") for folder in cases))
    for (folder, part), answer in zip(cases.items(), answers, strict=True):
        answer.failed(3, f"error: {folder}/pytorch_model.bin: ", part).quickly()
    assert not (tmp_path / "ran").exists()
    assert not out.exists()


# --- row 16: NaN and infinity in every type --------------------------------------------------------------------------

STACK = "blk.0.ffn_down_exps.weight"
SHAPE = {"n_layer": 1, "n_embd": 256, "n_head": 4, "n_head_kv": 2, "n_ff": 256, "n_expert": 2}
FLOATS = {
    Type.F32: (0x7FC00000, 0x7F800000, 0xFF800000, 0x7F800001), Type.F16: (0x7E00, 0x7C00, 0xFC00, 0x7C01),
    Type.BF16: (0x7FC0, 0x7F80, 0xFF80, 0x7F81),
}  # fmt: skip
# IQ1_M's scale is spread over four words' top nibbles; MXFP4's is an exponent.
SPREAD = {Type.IQ1_M: ((49, 0xF0), (51, 0xF0), (53, 0xF0), (55, 0x7F)), Type.MXFP4: ((0, 0xFF),)}
QUANTIZED = [form.type for form in FORMATS.values() if form.quantized and form.decodes]


def damages(kind: Type) -> list[tuple[tuple[int, int], ...]]:
    """Ways to make a block's scale infinite or NaN: each a list of (byte in the block, what it becomes)."""
    if kind in SPREAD:
        return [SPREAD[kind]]
    places = [FORMATS[kind].fields[name][0] for name in FORMATS[kind].scales]
    return [((at, low), (at + 1, high)) for at in places for low, high in ((0, 0x7C), (0, 0xFC), (1, 0x7C), (0, 0x7E))]


def stack_of(path: Path, kind: Type, raw: np.ndarray) -> Path:
    """A model with these bytes as one expert stack, which is of this type."""
    with open_gguf(write_tiny(path.with_suffix(".plain"), **SHAPE)) as gguf:
        metadata = {key: MetaValue(value, *gguf.metadata_types[key]) for key, value in gguf.metadata.items()}
        data = {name: raw.tobytes() if name == STACK else gguf.raw(name).tobytes() for name in gguf.tensors}
        headers = [
            TensorHeader(t.name, t.shape, kind if t.name == STACK else t.type, len(data[t.name]))
            for t in gguf.tensors.values()
        ]
    path.write_bytes(header_bytes(metadata, headers) + b"".join(x.ljust(padded(len(x)), b"\0") for x in data.values()))
    return path


def check(model: Path, out: Path, index: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Copying and converting both stop at the index, and the older output stays."""
    out.write_bytes(b"older output")
    for command in ("COPY",), ("Q8_0", "--allow-requantize"), ("F32", "--allow-requantize"):
        assert main(["quantize", str(model), str(out), *command]) == 3, command
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {model}: {STACK}: "), error
        assert f"NaN or infinity at index {index}," in error, (command, error)
    assert out.read_bytes() == b"older output"


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_row_16_every_quantized_types_scales(tmp_path: Path, kind: Type, capsys: pytest.CaptureFixture[str]) -> None:
    """Each field of a block that is a scale, at one of the last expert's blocks: the block's first element is named."""
    rows = tiny_weights(**SHAPE)[STACK].size // FORMATS[kind].block_size
    raw = np.zeros((rows, FORMATS[kind].block_bytes), np.uint8)
    block = rows - 3
    model = stack_of(tmp_path / "m.gguf", kind, raw)
    with open_gguf(model) as opened:
        offset = opened.tensors[STACK].offset + block * FORMATS[kind].block_bytes
    good = model.read_bytes()
    for damage in damages(kind):
        data = bytearray(good)
        for at, value in damage:
            data[offset + at] = value
        model.write_bytes(data)
        check(model, tmp_path / "out.gguf", block * FORMATS[kind].block_size, capsys)


@pytest.mark.parametrize("kind", FLOATS, ids=lambda kind: kind.name)
def test_row_16_every_float_type(tmp_path: Path, kind: Type, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN, both infinities and a signalling NaN, at the first element, the last, and one between; the first counts."""
    size = tiny_weights(**SHAPE)[STACK].size
    bits = np.zeros(size, np.uint32 if kind == Type.F32 else np.uint16)
    for i, value in enumerate(FLOATS[kind]):
        index = (0, size - 1, size // 2 + 7, 12345)[i]
        damaged = bits.copy()
        damaged[index] = value
        damaged[-1] = FLOATS[kind][0]
        model = stack_of(tmp_path / "m.gguf", kind, damaged.view(np.uint8).reshape(size, -1))
        check(model, tmp_path / "out.gguf", index, capsys)
