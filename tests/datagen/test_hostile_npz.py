"""Files in the GPPN layout from anybody: each is refused in one line, or means what it says, in bounded memory."""

import io
import os
import struct
import zipfile

import numpy as np
import pytest
from mutations import EXAMPLES, bounded, mutated

import datagen.storage.npy as npy_file
from datagen.problem import Moves
from datagen.storage.dataset import read_split
from datagen.storage.manifest import DatasetError
from datagen.storage.npz import import_npz
from datagen.tasks.registry import TASKS, Task
from orchestrator.cli.main import main

SIZE = 7


def npy(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


def members():
    found = {}
    for number, count in enumerate((3, 2, 2)):
        maps, goals = np.ones((count, SIZE, SIZE)), np.zeros((count, 1, SIZE, SIZE))
        maps[:, 2, 2], goals[:, 0, 1, 1] = 0, 1
        maps[:, 3, 4] = np.arange(count) % 2
        found |= {f"arr_{2 * number}.npy": npy(maps), f"arr_{2 * number + 1}.npy": npy(goals)}
    return found


def zipped(content, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, part in content.items():
            archive.writestr(name, part)
    return file.getvalue()


def header(text, version=1):
    return b"\x93NUMPY" + bytes((version, 0)) + struct.pack("<H" if version == 1 else "<I", len(text)) + text


def shaped(shape, payload=b"", fortran=False, descr="'<f8'"):
    return header(f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()) + payload


def refused(path, message, **options):
    with pytest.raises(DatasetError, match=message) as found:
        import_npz(path, "navigation", path.parent / "sets", **options)
    text = str(found.value)
    assert "\n" not in text and len(text) < 1500 and str(path) in text
    assert not list((path.parent / "sets").glob("*"))


def every(shape_of):
    return {f"arr_{number}.npy": shape_of((1,) * (number % 2)) for number in range(6)}


FIRST = {
    "negative": shaped("(-3, 7, 7)", bytes(1176)),
    "parentheses": header(b"(" * 9000),
    "minus signs": header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (" + b"-" * 8000 + b"3, 7, 7), }"),
    "an open line": header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (3, 7, 7), \\"),
    "an indent": header(b"  {\n 1}\n   2"),
    "keys of two kinds": header(b"{'descr': '<f8', None: False, 'shape': (3, 7, 7), }"),
    "a key thrice": header(b"{'descr': '<f8', 'descr': '<f8', 'descr': '<f8', }"),
    "a long header": header(b" " * 60_000),
    "a header without end": header(b"", 2)[:-4] + struct.pack("<I", 2**32 - 1) + bytes(100),
    "version 3": header(b"{}", 3),
    "no magic": b"hello",
    "nothing": b"",
    "ten thousand dimensions": shaped("(" + "1," * 4000 + ")", bytes(8)),
    "a shape of text": shaped("('3', 7, 7)"),
    "a shape of floats": shaped("(3.0, 7, 7)"),
    "digits that are none": shaped("(\uff13, 7, 7)"),
    "more bytes than numbers": members()["arr_0.npy"] + b"x" * 1000,
    "fewer bytes than numbers": members()["arr_0.npy"][:-1],
    "10^18 maps": shaped("(1000000000000000000, 7, 7)"),
    "10^30 maps": shaped("(1" + "0" * 30 + ", 7, 7)"),
    "objects": shaped("(3, 7, 7)", bytes(1176), descr="'|O'"),
    "a structure": shaped("(3, 7, 7)", bytes(1176), descr="[('a', '<f8')]"),
    "text": shaped("(3, 7, 7)", bytes(588), descr="'<U1'"),
    "a type that is none": shaped("(3, 7, 7)", bytes(1176), descr="'<f99'"),
    "dates": shaped("(3, 7, 7)", bytes(1176), descr="'<M8'"),
    "several types": shaped("(3, 7, 7)", bytes(1176), descr="'f4,f4'"),
    "complex numbers": shaped("(3, 7, 7)", bytes(2352), descr="'<c16'"),
    "two axes": shaped("(3, 49)", bytes(1176)),
}


@pytest.mark.parametrize("case", FIRST)
def test_an_array_that_is_none_is_refused(case, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(zipped(members() | {"arr_0.npy": FIRST[case]}))
    with bounded(processor_seconds=5, mebibytes=100):
        refused(path, "arr_0: ")


def patched(content, signature, offset, value):
    """Return a zip file with a byte of every entry changed."""
    content, at = bytearray(content), 0
    while (at := content.find(signature, at)) >= 0:
        content[at + offset] = value
        at += 4
    return bytes(content)


def overwritten(content, name):
    """Return a zip file with the stream of a member damaged."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        start = archive.getinfo(name).header_offset + 30 + len(name)
    content = bytearray(content)
    for at in range(start + 40, start + 60):
        content[at] ^= 0xFF
    return bytes(content)


METHODS = {"stored": 0, "deflated": 8, "bzip2": 12, "lzma": 14}
FILES = {
    **{f"{name}, damaged": overwritten(zipped(members(), of), "arr_2.npy") for name, of in METHODS.items()},
    "encrypted": patched(patched(zipped(members()), b"PK\1\2", 8, 1), b"PK\3\4", 6, 1),
    "an unknown method": patched(zipped(members()), b"PK\1\2", 10, 99),
    "a later version": patched(zipped(members()), b"PK\1\2", 6, 148),
    "no suffix": zipped({name.removesuffix(".npy"): part for name, part in members().items()}),
    "a name with a line break": zipped(members() | {"a\nb.npy": b""}),
    "a long name": zipped(members() | {"a" * 60_000: b""}),
    "half": zipped(members())[: len(zipped(members())) // 2],
    "no zip": b"hello",
    "nothing": b"",
    "a folder in it": zipped(members() | {"arr_0.npy/": b""}),
    "a bomb of maps": zipped(every(lambda one: shaped(f"({10**9}, {'1, ' * len(one)}7, 7)"))),
    "distances beside policies": zipped(
        {f"arr_{n}.npy": npy(np.ones((2, *([1] if n % 4 else []), 7, 7))) for n in range(12)}
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_set_is_refused(case, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(FILES[case])
    with bounded(processor_seconds=5, mebibytes=100):
        refused(path, "a.npz: ")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(zipped(members()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("arr_0.npy", members()["arr_2.npy"])
    refused(path, "twice")


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a device"])
def test_what_is_no_file_is_refused_and_not_waited_for(kind, tmp_path):
    path = tmp_path / "a.npz"
    make_it = {"a folder": os.mkdir, "a pipe": os.mkfifo, "a device": lambda path: os.symlink("/dev/zero", path)}
    make_it[kind](path)
    with bounded(processor_seconds=5, mebibytes=50):
        refused(path, f"not an .npz file: expected a file, got {kind}")


def test_a_bomb_in_fortran_order_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(npy_file, "_FORTRAN_BYTES", 2**20)
    path, maps = tmp_path / "a.npz", 100_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number in range(6):
            shape = (maps, 7, 7) if number % 2 == 0 else (maps, 1, 7, 7)
            with archive.open(f"arr_{number}.npy", "w", force_zip64=True) as member:
                member.write(shaped(shape if number < 2 else (1, *shape[1:]), fortran=True))
                left = 49 * 8 * (maps if number < 2 else 1)
                for start in range(0, left, 2**22):
                    member.write(bytes(min(2**22, left - start)))
    with bounded(processor_seconds=20, mebibytes=20):
        refused(path, "arr_0: 39,200,000 bytes in Fortran order.*save it in C order")


def test_other_spellings_of_a_header_mean_the_same(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(zipped(members()))
    expected = import_npz(path, "navigation", tmp_path / "sets")
    content = members()["arr_0.npy"]
    body = content[-3 * SIZE * SIZE * 8 :]
    for text in (
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (3L, 7L, 7L), }",  # Python 2
        b'{"shape": (3, 7, 7), "descr": "<f8", "fortran_order": False}',
        b"{'descr':'<f8','fortran_order':False,'shape':(3,7,7)}          \n",
    ):
        path.write_bytes(zipped(members() | {"arr_0.npy": header(text, 2) + body}, zipfile.ZIP_LZMA))
        assert import_npz(path, "navigation", tmp_path / "sets") == expected


def test_an_unknown_task_is_one_line(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(zipped(members()))
    with pytest.raises(DatasetError, match=r"a.npz: task: unknown name 'navigatoin'; did you mean 'navigation'\?$"):
        import_npz(path, "navigatoin", tmp_path)


def test_a_task_of_eight_moves_has_no_order_of_four(tmp_path, monkeypatch):
    eight = Moves(names=tuple("abcdefgh"), offsets=((0, 1),) * 8, costs=(1.0,) * 8)
    monkeypatch.setitem(TASKS, "eight", Task("datagen.tasks.navigation:draw", eight))
    path = tmp_path / "a.npz"
    path.write_bytes(zipped(members()))
    with pytest.raises(DatasetError, match="'news' is an order of four moves"):
        import_npz(path, "eight", tmp_path, actions="news")


def test_maps_need_not_be_square_where_the_task_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "wide", Task("datagen.tasks.navigation:draw", map_shape=lambda spec: (spec.map_size, 9)))
    path, arrays = tmp_path / "a.npz", []
    for _ in range(3):
        goal = np.zeros((2, 1, 7, 9))
        goal[:, 0, 1, 8] = 1
        arrays += [np.ones((2, 7, 9)), goal]
    np.savez(path, *arrays)
    assert read_split(import_npz(path, "wide", tmp_path), "test").map.shape == (2, 7, 9)


def _import(path, capsys):
    status = main(["import", str(path), "--task", "navigation", "--out", str(path.parent / "sets")])
    out, err = capsys.readouterr()
    assert (status == 0 and not err) or (status == 2 and err.startswith("idp: ") and err.count("\n") == 1), (
        status,
        err,
    )
    return out.strip()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_fuzzed_npz_files_are_refused_or_mean_the_same(method, tmp_path, capsys):
    path, content = tmp_path / "a.npz", zipped(members(), METHODS[method])
    path.write_bytes(content)
    expected = _import(path, capsys)
    with bounded(processor_seconds=10 + EXAMPLES * 0.3, mebibytes=300):
        for number in range(EXAMPLES):
            path.write_bytes(mutated(content, number))
            assert _import(path, capsys) in ("", expected)


@pytest.mark.slow
def test_fuzzed_npz_headers_are_refused_or_say_what_they_hold(tmp_path, capsys):
    path, content = tmp_path / "a.npz", members()
    with bounded(processor_seconds=10 + EXAMPLES * 0.3, mebibytes=300):
        for number in range(2 * EXAMPLES):
            name = f"arr_{number % 6}.npy"
            damaged = mutated(content[name][:128], number) + content[name][128:]
            path.write_bytes(zipped(content | {name: damaged}, zipfile.ZIP_STORED))
            if folder := _import(path, capsys):
                with np.load(path) as file:
                    np.testing.assert_array_equal(read_split(folder, "test").map, file["arr_4"])
