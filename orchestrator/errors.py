"""What is told to a user in one line, with exit code 2; everything else that is raised is a fault of this project.

`PluginError` and `DatasetError` of datagen and `PlannerError` of planners are below `UserError` too.
"""

from __future__ import annotations

from datagen.errors import UserError as UserError


class SweepError(UserError):
    """A sweep, or an option beside it, that can't be run."""


class ResultError(UserError):
    """A file in the storage that is not what it should be."""


class ClusterError(UserError):
    """The cluster can't be reached, lacks what a sweep needs, or keeps losing the same piece of work."""


class JobError(ClusterError):
    """A sweep can't be put on a cluster as a job, or followed there."""


class TrackingError(UserError):
    """MLflow, or another page that shows trials, does not answer."""
