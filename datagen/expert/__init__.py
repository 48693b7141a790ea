"""Labels: the best ways on grids and graphs."""

from datagen.moved import attributes

__getattr__ = attributes("datagen.expert", "datagen.expert.grid")
