"""Stand-ins for foreign models."""

from foreign_models import no_plots, with_mamba  # noqa: F401 (fixtures)
