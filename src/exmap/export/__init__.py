"""An analysis in the formats of tools for looking at images; a repaired classifier in the form it came in."""

from exmap.export.folder import check_target, export_run, export_targets

__all__ = ["check_target", "export_run", "export_targets"]
