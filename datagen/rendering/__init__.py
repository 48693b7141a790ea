"""What a robot sees of a map."""

import contextlib

with contextlib.suppress(ImportError):
    # Mesa hands its LLVM to whatever is loaded after it, and Triton, which torch loads as it trains, crashes on that.
    import triton._C.libtriton  # noqa: F401
