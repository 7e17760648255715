"""Typed, frozen settings: a module per group of sections, and how they are read from presets, files and overrides."""

from exmap.settings.data import DataSettings, GradedSettings, ImageSettings
from exmap.settings.describe import SettingRow, describe_settings
from exmap.settings.grouping import AutoSettings, ClusterSettings, ExplainSettings, GroupsSettings
from exmap.settings.loading import (
    Settings,
    change_settings,
    dump_settings,
    load_edits,
    load_settings,
    packaged_yaml,
    parse_settings,
    preset_names,
    read_yaml,
)
from exmap.settings.repair import Edits, EvaluateSettings, GroupEdit, RetrainSettings, Selection
from exmap.settings.section import check_own_options
from exmap.settings.training import ModelSettings, RuntimeSettings, TrainSettings

__all__ = [
    "AutoSettings",
    "ClusterSettings",
    "DataSettings",
    "Edits",
    "EvaluateSettings",
    "ExplainSettings",
    "GradedSettings",
    "GroupEdit",
    "GroupsSettings",
    "ImageSettings",
    "ModelSettings",
    "RetrainSettings",
    "RuntimeSettings",
    "Selection",
    "SettingRow",
    "Settings",
    "TrainSettings",
    "change_settings",
    "check_own_options",
    "describe_settings",
    "dump_settings",
    "load_edits",
    "load_settings",
    "packaged_yaml",
    "parse_settings",
    "preset_names",
    "read_yaml",
]
