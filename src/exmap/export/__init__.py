"""An analysis in the formats of tools for looking at images: ViRelAy's project, and a flat table."""

from exmap.export.folder import check_target, export_run, export_targets

__all__ = ["check_target", "export_run", "export_targets"]
