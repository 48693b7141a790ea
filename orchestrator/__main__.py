"""`idp`, and `python -m orchestrator`, which is the same."""

import signal
import sys


def main() -> int:
    """Run `idp`; Ctrl-C ends it without a word for as long as it is still being imported."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from orchestrator.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
