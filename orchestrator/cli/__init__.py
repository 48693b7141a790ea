"""The command line, a verb a function."""

from datagen.moved import attributes

__getattr__ = attributes("orchestrator.cli", "orchestrator.cli.main")
