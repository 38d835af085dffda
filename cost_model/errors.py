"""The one error of this room."""


class ClusterError(ValueError):
    """A cluster, mesh, axis or collective that cannot be priced: a paragraph with what to write instead."""
