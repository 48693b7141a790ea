"""Every source that a module is made of is found, at any depth of a package."""

from datagen.sources import sources

FILES = {
    "shop/__init__.py": "from shop.front import window",
    "shop/front.py": "import shop.store.shelf as shelf\n\n\ndef later():\n    from shop.till import take",
    "shop/till.py": "import elsewhere",
    "shop/other.py": "",
    "shop/store/__init__.py": "from .shelf import HEIGHT as HEIGHT",
    "shop/store/shelf.py": "from ..wood import oak\nfrom . import nails\nHEIGHT = 3",
    "shop/store/nails.py": "from shop.store.metal.iron import RUST",
    "shop/store/metal/iron.py": "RUST = 1",
    "shop/wood/__init__.py": "",
    "shop/wood/oak.py": "",
    "alone.py": "from shop.store import HEIGHT",
}


def write(folder):
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return {"shop": folder / "shop", "alone": folder / "alone.py"}


def test_imports_are_followed_through_nested_packages(tmp_path):
    roots = write(tmp_path)
    metal = {"shop.store.nails", "shop.store.metal.iron"}
    shelf = {"shop.store.shelf", "shop.wood", "shop.wood.oak", "shop.store", *metal}
    assert set(sources(["shop.front"], roots)) == {"shop.front", "shop.till", *shelf}
    assert set(sources(["shop.store.nails"], roots)) == metal
    assert set(sources(["alone"], roots)) == {"alone", *shelf}
    assert set(sources(["shop.front"], roots, leaves=["shop.store.shelf"])) == {
        "shop.front",
        "shop.till",
        "shop.store.shelf",
    }
    assert sources(["shop.store.metal.iron"], roots) == {"shop.store.metal.iron": b"RUST = 1"}
    assert sources(["shop.missing", "elsewhere.module"], roots) == {}
