"""The digest of definitions sees every change of what is computed, and none of where it stands."""

import ast
import sys
from pathlib import Path

import pytest

from datagen import definitions
from datagen.definitions import digest

FILES = {
    "shop.__init__": b"from shop.till import take",
    "shop.till": b"""
import math
from shop.prices import BREAD, price as _price

def take(count):
    \"\"\"Take money.\"\"\"
    from shop.tax import rate
    return math.ceil(count * _price(BREAD) * rate())
""",
    "shop.prices": b"BREAD = 'bread'\n\ndef price(name):\n    return _look(name)\n\ndef _look(name):\n    return 3\n",
    "shop.tax": b"def rate():\n    return _look()\n\ndef _look():\n    return 1.1\n",
    "shop.registry": b"PARTS = {'till': 'shop.till:take'}\n",
}


def changed(module, old, new, files=FILES):
    assert old in files[module]
    return digest(files | {module: files[module].replace(old, new)}) != digest(files)


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("shop.prices", b"return 3", b"return 4"),
        ("shop.prices", b"'bread'", b"'cake'"),
        ("shop.prices", b"return _look(name)", b"return _look(name) + 1"),
        ("shop.till", b"import math", b"import cmath as math"),
        ("shop.till", b"math.ceil", b"math.floor"),
        ("shop.till", b"price(BREAD)", b"price(count)"),
        ("shop.till", b"from shop.tax import rate", b"from shop.untaxed import rate"),
        ("shop.registry", b"shop.till:take", b"shop.prices:price"),
        ("shop.registry", b"'till'", b"'front'"),
        ("shop.registry", b"PARTS", b"PIECES"),
    ],
)
def test_what_computes_otherwise_has_another_digest(module, old, new):
    assert changed(module, old, new, FILES | {"shop.untaxed": b"def rate():\n    return 1\n"})


def test_two_definitions_that_change_places_are_a_change():
    files = FILES | {"shop.prices": FILES["shop.prices"].replace(b"return 3", b"return 1.1")}
    swapped = files | {"shop.tax": FILES["shop.tax"].replace(b"1.1", b"3")}
    assert digest(swapped) != digest(FILES)
    # the same functions under the same names, each used by the other's caller
    crossed = {
        "shop.prices": FILES["shop.prices"].replace(b"def _look(name):\n    return 3", b"def _look():\n    return 1.1"),
        "shop.tax": FILES["shop.tax"].replace(b"def _look():\n    return 1.1", b"def _look(name):\n    return 3"),
    }
    assert digest(FILES | crossed) != digest(FILES)


def test_two_values_of_one_name_keep_their_order():
    assert digest({"a": b"X = 1\nX = 2\n"}) != digest({"a": b"X = 2\nX = 1\n"})


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("shop.till", b'"""Take money."""', b'"""Take it."""'),
        ("shop.till", b"import math\n", b"import math  # a remark\n"),
        (
            "shop.till",
            b"math.ceil(count * _price(BREAD) * rate())",
            b"math.ceil(\n        count * _price(BREAD) * rate()\n    )",
        ),
        ("shop.till", b"from shop.tax import rate", b"from .tax import rate"),
        ("shop.prices", b"BREAD", b"__all__ = ['BREAD']\nBREAD"),
        (
            "shop.till",
            b"import math\n",
            b"import math\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n",
        ),
    ],
)
def test_what_computes_nothing_is_no_change(module, old, new):
    assert not changed(module, old, new)


def test_modules_may_be_moved_divided_and_renamed():
    there = {
        "shop.__init__": b"from shop.counter.till import take",
        "shop.counter.__init__": b'"""Where one pays."""',
        "shop.counter.till": FILES["shop.till"].replace(b"shop.", b"shop.office."),
        "shop.office.__init__": b"",
        "shop.office.prices": b"from shop.office.goods import BREAD\n" + FILES["shop.prices"].partition(b"\n\n")[2],
        "shop.office.goods": b"BREAD = 'bread'\n",
        "shop.office.tax": FILES["shop.tax"],
        "shop.parts": FILES["shop.registry"].replace(b"shop.till", b"shop.counter.till"),
    }
    assert digest(there) == digest(FILES)


def test_it_is_kept_for_the_same_files_and_found_again_where_that_is_damaged(tmp_path, monkeypatch):
    module = tmp_path / "definitions.py"
    module.write_bytes(Path(definitions.__file__).read_bytes())
    monkeypatch.setattr(definitions, "__file__", str(module))
    first = digest(FILES)
    (kept,) = (tmp_path / "__pycache__").iterdir()
    assert kept.read_text() == first
    monkeypatch.setattr(definitions, "_digest", lambda files: "f" * 64)
    assert digest(FILES) == first and digest({"a": b"X = 1"}) == "f" * 64
    kept.write_bytes(b"\xff" + first[1:].encode())
    assert digest(FILES) == "f" * 64


def test_another_minor_version_of_python_is_no_change():
    """What later versions add to their trees (type_params) or leave out of their dumps (empty lists) is no part."""
    trees = [ast.parse(path.read_bytes()) for path in sorted(Path(definitions.__file__).parent.rglob("*.py"))]
    assert len(trees) > 20
    if sys.version_info[:2] == (3, 11):
        assert all(ast.dump(tree) == definitions._text(tree) for tree in trees)
    plain, generic = (ast.parse("def f(x): return None").body[0] for _ in range(2))
    plain.type_params, plain._fields = [], ("name", "type_params")
    generic.type_params, generic._fields = [ast.Name("T", ast.Load())], ("name", "type_params")
    empty = ast.JoinedStr([ast.Constant("")])  # 3.12 ends a format so
    assert definitions._text(empty) == "JoinedStr(values=[])"
    assert definitions._text(plain) == "FunctionDef(name='f')" and "T" in definitions._text(generic)
