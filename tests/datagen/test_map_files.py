"""One's own maps and costs: what each format means by free, and damaged files of each."""

import io
import struct
import zlib

import numpy as np
import pytest
from mutations import EXAMPLES, bounded, mutated
from PIL import Image

from datagen.storage.manifest import DatasetError
from datagen.storage.map_files import Reading, read_costs, read_map

FREE = np.array([[1, 0, 1, 1], [1, 1, 1, 0], [0, 1, 1, 1]], np.uint8)


def saved(path, array, mode=None, **options):
    Image.fromarray(array, mode).save(path, **options)
    return path


def server(tmp_path, grey, name="map.pgm", **fields):
    """Write a ROS map, its text with some fields changed; return the text's path."""
    saved(tmp_path / name, grey)
    said = {"image": name, "resolution": 0.05, "origin": [-1.0, -2.0, 0.0], "negate": 0} | {
        "occupied_thresh": 0.65,
        "free_thresh": 0.196,
    }
    lines = [f"{field}: {value}\n" for field, value in (said | fields).items() if value is not None]
    (tmp_path / "map.yaml").write_text("".join(lines))
    return tmp_path / "map.yaml"


def benchmark(path, rows, head="type octile\nheight {}\nwidth {}\nmap\n"):
    path.write_text(head.format(len(rows), len(rows[0])) + "\n".join(rows) + "\n")
    return path


def scenarios(path, *problems, name="a.map", size="4\t3"):
    lines = [f"0\t{name}\t{size}\t" + "\t".join(map(str, problem)) + "\t3.5\n" for problem in problems]
    path.write_text("version 1\n" + "".join(lines))
    return path


@pytest.mark.parametrize(
    "grey",
    [
        FREE * 255,
        np.where(FREE, 128, 127).astype(np.uint8),
        np.stack([FREE * 255] * 3, 2),
        np.where(FREE, 40000, 300).astype(np.uint16),
        FREE.astype(bool),
    ],
    ids=["black and white", "at the threshold", "colours", "16 bits", "one bit"],
)
def test_light_is_free_in_a_picture(tmp_path, grey):
    np.testing.assert_array_equal(read_map(saved(tmp_path / "m.png", grey)).free, FREE)
    np.testing.assert_array_equal(read_map(str(tmp_path / "m.png")).free, FREE)
    if grey.ndim == 2:
        np.testing.assert_array_equal(read_map(saved(tmp_path / "m.pgm", grey)).free, FREE)


def test_a_picture_is_read_as_it_is_said_to_be(tmp_path):
    path = saved(tmp_path / "m.png", np.array([[0, 99, 100, 155, 156, 255]], np.uint8))
    for reading, free in (
        (Reading(), [0, 0, 0, 1, 1, 1]),
        (Reading(threshold=100), [0, 0, 1, 1, 1, 1]),
        (Reading(threshold=100, dark_is_free=True), [1, 1, 1, 1, 0, 0]),
    ):
        assert read_map(path, reading).free.tolist() == [free]
    (tmp_path / "plain.pgm").write_text("P2\n# a comment\n3 1\n15\n0 7 15\n")
    assert read_map(tmp_path / "plain.pgm").free.tolist() == [[0, 0, 1]]


def test_a_ros_map_is_read_as_map_server_does(tmp_path):
    grey = np.array([[0, 88, 89, 90, 205, 206, 254, 255]], np.uint8)  # 205 is what map_saver writes for unknown
    path = server(tmp_path, grey)
    found = read_map(path)
    assert found.free.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]]
    assert (found.place.resolution, found.place.origin) == (0.05, (-1.0, -2.0, 0.0))
    assert read_map(path, Reading(unknown_is_free=True)).free.tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]]
    found = read_map(server(tmp_path, grey, resolution="5e-2", origin="[-1, 1e-05, 0]"))  # no point, as yaml-cpp has it
    assert (found.place.resolution, found.place.origin) == (0.05, (-1.0, 1e-5, 0.0))
    assert read_map(server(tmp_path, grey, negate="true")).free.tolist() == [[1, 0, 0, 0, 0, 0, 0, 0]]
    # in between 0.196 and 0.65 by proportion: an obstacle from 65 of 100 on
    scale = np.array([[0, 130, 131, 205, 255]], np.uint8)
    assert read_map(server(tmp_path, scale, mode="scale", further="x")).free.tolist() == [[0, 0, 1, 1, 1]]
    raw = np.array([[0, 64, 65, 100, 101, 255]], np.uint8)
    path = server(tmp_path, raw, mode="raw", negate=1)
    assert read_map(path).free.tolist() == [[1, 1, 0, 0, 0, 0]]
    assert read_map(path, Reading(unknown_is_free=True)).free.tolist() == [[1, 1, 0, 0, 1, 1]]
    half = np.dstack([np.full((1, 2, 3), 255, np.uint8), np.array([[[255], [128]]], np.uint8)])
    assert read_map(server(tmp_path, half, "map.png", mode="scale")).free.tolist() == [[1, 0]]


def test_letters_of_the_benchmarks(tmp_path):
    assert read_map(benchmark(tmp_path / "a.map", [".GS", "@OT", "W.."])).free.tolist() == [
        [1, 1, 1], [0, 0, 0], [0, 1, 1],
    ]  # fmt: skip
    rows = ["".join(".@"[1 - cell] for cell in row) for row in FREE]
    (tmp_path / "a.map").write_bytes(("type octile\r\nheight 3\r\nwidth 4\r\nmap\r\n" + "\r\n".join(rows)).encode())
    np.testing.assert_array_equal(read_map(tmp_path / "a.map").free, FREE)
    # x, which is the column, comes first; the map's folders on another machine mean nothing here
    path = scenarios(tmp_path / "a.scen", (2, 0, 1, 2), (0, 1, 3, 2), name="maps/dao\\a.map")
    found = read_map(path)
    np.testing.assert_array_equal(found.free, FREE)
    assert found.ends == (((0, 2), (2, 1)), ((1, 0), (2, 3)))


def test_costs_are_numbers_or_greys(tmp_path):
    np.save(tmp_path / "c.npy", np.array([[0, 2.5, np.inf], [np.nan, 1, 3]], np.float32))
    assert read_costs(tmp_path / "c.npy").tolist() == [[0, 2.5, np.inf], [np.inf, 1, 3]]
    assert read_costs(str(tmp_path / "c.npy"))[0, 1] == 2.5
    path = saved(tmp_path / "c.png", np.array([[255, 204, 0]], np.uint8))
    np.testing.assert_allclose(read_costs(path, darkest=11), [[1, 3, 11]])
    np.testing.assert_allclose(read_costs(path, darkest=11, dark_is_free=True), [[11, 9, 1]])
    np.save(tmp_path / "m.npy", np.asfortranarray(FREE == 1))
    np.testing.assert_array_equal(read_map(tmp_path / "m.npy").free, FREE)


def huge(path):
    """A PNG that says it has 50,000 rows and columns, and is otherwise right."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
    return path


def pickled(path):
    np.save(path, np.array([[{}]], object), allow_pickle=True)
    return path


def array(path, values):
    np.save(path, values)
    return path


GREY = FREE * 255
ROW = "type octile\nheight 1\nwidth 2\nmap\n"
BAD = {
    "no such file": (lambda p: p / "none.png", "none.png: No such file"),
    "another ending": (lambda p: p / "map.bmp", r"map.bmp: expected a name ending in .png, .pgm, .yaml"),
    "no picture": (lambda p: text(p / "m.png", "hello"), "m.png: not a readable PNG or PGM: it does not begin as one"),
    "transparent": (
        lambda p: saved(p / "m.png", np.dstack([np.stack([GREY] * 3, 2), GREY])),
        r"m.png: pixel \(0, 1\) is transparent",
    ),
    "huge": (lambda p: huge(p / "m.png"), "m.png: not a readable PNG or PGM: Image size .* exceeds"),
    "too large": (
        lambda p: saved(p / "m.png", np.zeros((1, 5000), np.uint8)),
        "m.png: expected 1 to 4096 rows and columns, got 1 x 5000",
    ),
    "a number without end": (
        lambda p: server(p, GREY, resolution="0x" + "f" * 9000),
        "map.yaml: resolution: expected a number, got int of more digits than can be written",
    ),
    "no field": (lambda p: server(p, GREY, resolution=None), "map.yaml: resolution: is missing"),
    "a text for a number": (
        lambda p: server(p, GREY, free_thresh="'0.2'"),
        "free_thresh: expected a number, got '0.2'",
    ),
    "no truth value": (lambda p: server(p, GREY, negate="'no'"), "map.yaml: negate: expected 0, 1, False or True, got"),
    "between": (lambda p: array(p / "m.npy", FREE * 0.999999), "with values from 0 up to 1, such as 0.999999"),
    "two of three": (lambda p: server(p, GREY, origin=[0.0, 0.0]), "map.yaml: origin"),
    "another mode": (lambda p: server(p, GREY, mode="grey"), "mode: expected 'trinary', 'scale' or 'raw'"),
    "thresholds": (lambda p: server(p, GREY, free_thresh=0.9), "free_thresh: 0.9 is more than occupied_thresh"),
    "no picture beside it": (lambda p: server(p, GREY, image="other.pgm"), "other.pgm: No such file"),
    "twice": (lambda p: text(p / "m.yaml", "mode: raw\nmode: scale"), "m.yaml: .*: mode is there twice"),
    "deep": (lambda p: text(p / "m.yaml", "mode: " + "[" * 30_000), "m.yaml: not the text of a ROS map"),
    "an alias": (lambda p: text(p / "m.yaml", "origin: &a [*a]"), "m.yaml: not the text of a ROS map"),
    "code": (lambda p: text(p / "m.yaml", "image: !!python/name:os.system"), "m.yaml: not the text of a ROS map"),
    "no header": (lambda p: text(p / "a.map", "...\n"), "a.map: expected four lines that begin with type, height"),
    "a short row": (lambda p: text(p / "a.map", ROW + "."), "a.map: expected 1 rows of 2 letters, got row 0 has 1"),
    "too many rows": (lambda p: text(p / "a.map", ROW + "..\n.."), "a.map: expected 1 rows of 2 letters, got 2 rows"),
    "a letter": (lambda p: text(p / "a.map", ROW + ".x"), r"a.map: cell \(0, 1\): expected one of .GS@OTW, got 'x'"),
    "a number": (lambda p: text(p / "a.map", ROW.replace("2", "-2") + ".."), "a.map: width: expected a whole number"),
    "another type": (lambda p: text(p / "a.map", ROW.replace("octile", "3d") + ".."), "a.map: type: expected octile"),
    "a version": (lambda p: text(p / "a.scen", "version 2\n"), "a.scen: line 1: expected 'version 1', got 'version 2'"),
    "no problems": (lambda p: text(p / "a.scen", "version 1\n"), "a.scen: expected a problem on each line, found none"),
    "another size": (lambda p: scen(p, (0, 0, 2, 0), size="8\t3"), "a.scen: line 2: expected the size of a.map, 4 x 3"),
    "on an obstacle": (
        lambda p: scen(p, (0, 0, 1, 0)),
        r"a.scen: problem 0: goal: \(0, 1\) \(row, column\) is no free",
    ),
    "not a map": (lambda p: scen(p, (0, 0, 2, 0), name="/etc/passwd"), "a.scen: line 2: map: expected a name ending"),
    "a field less": (lambda p: scen(p, (0, 0, 2)), "a.scen: line 2: expected bucket, map, width, height"),
    "objects": (lambda p: pickled(p / "m.npy"), "m.npy: expected numbers .h, w., got object"),
    "three axes": (lambda p: array(p / "m.npy", np.ones((2, 2, 2))), r"m.npy: expected numbers \[h, w\], got float64"),
    "no zeros and ones": (
        lambda p: array(p / "m.npy", GREY),
        "m.npy: expected 1 .free. and 0 .*values from 0 up to 255",
    ),
}


def text(path, content):
    path.write_text(content)
    return path


def scen(folder, *problems, **fields):
    benchmark(folder / "a.map", ["".join(".@"[1 - cell] for cell in row) for row in FREE])
    return scenarios(folder / "a.scen", *problems, **fields)


@pytest.mark.parametrize("case", BAD)
def test_a_bad_map_is_told_in_one_line(tmp_path, case):
    make, message = BAD[case]
    path = make(tmp_path)
    with pytest.raises(DatasetError, match=message) as told:
        read_map(path)
    assert "\n" not in str(told.value) and len(str(told.value)) < 400


def test_bad_costs_are_told(tmp_path):
    for path, message in (
        (array(tmp_path / "c.npy", np.array([[1, -2]])), r"c.npy: expected costs of at least 0, got -2 at \(0, 1\)"),
        (tmp_path / "c.map", "c.map: expected costs in a file ending in .npy, .png or .pgm"),
    ):
        with pytest.raises(DatasetError, match=message):
            read_costs(path)
    with pytest.raises(DatasetError, match=r"darkest pixel costs: expected 1 or more, got 0\.5"):
        read_costs(saved(tmp_path / "c.png", GREY), darkest=0.5)


@pytest.mark.parametrize("before", [b"P5\n", b"P5 3 ", b"P5 3 1\n", b"P1\n"])
def test_a_picture_of_one_long_comment_is_refused_unread(tmp_path, before):
    (tmp_path / "long.pgm").write_bytes(before + b"#" + 2**26 * b"x" + b"\n3 1 255\n" + bytes(3))
    with (
        bounded(processor_seconds=5, mebibytes=300),
        pytest.raises(DatasetError, match=r"long\.pgm: not a readable PNG or PGM: its header has no end"),
    ):
        read_map(tmp_path / "long.pgm")


def test_fuzzed_maps_are_refused_or_taken_whole(tmp_path):
    map_ = scen(tmp_path, (0, 0, 2, 0), (0, 1, 3, 2))
    server(tmp_path, GREY)
    files = {"a.png": io.BytesIO(), "m.npy": io.BytesIO()}
    Image.fromarray(GREY).save(files["a.png"], "png")
    np.save(files["m.npy"], FREE)
    whole = {name: file.getvalue() for name, file in files.items()}
    whole |= {
        path.name: path.read_bytes() for path in (map_, *(tmp_path / n for n in ("a.map", "map.pgm", "map.yaml")))
    }
    taken = dict.fromkeys(whole, 0)
    with bounded(processor_seconds=5 + EXAMPLES / 20, mebibytes=300):
        for name, content in whole.items():
            for number in range(EXAMPLES):
                (tmp_path / name).write_bytes(mutated(content, number))
                try:
                    found = read_map(tmp_path / name)
                except DatasetError as error:
                    assert str(error).startswith(str(tmp_path)) and "\n" not in str(error), error
                    continue
                taken[name] += 1
                assert found.free.dtype == np.uint8 and set(np.unique(found.free)) <= {0, 1}
                if name == "a.png":  # whose check sums tell
                    np.testing.assert_array_equal(found.free, FREE)
            (tmp_path / name).write_bytes(content)
    assert all(count < EXAMPLES for count in taken.values()), taken
