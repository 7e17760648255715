"""Markdown that is made of the code when the site is built: commands, settings, names, schemas and rules.

Each function returns the text of one part of a page. A page says ``<!-- generated: NAME ARGUMENT -->`` where it goes.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import typer
from typer.cli import get_docs_for_click

from exmap import registry
from exmap.errors import SettingsError
from exmap.explain.rules import rules_table
from exmap.registry import Registry
from exmap.settings import Settings, change_settings, describe_settings, preset_names
from exmap.settings.describe import SettingRow

ROOT = Path(__file__).parents[1]
SECTIONS = {  # what each section of the settings is about
    "seed": "The seed of the run",
    "data": "Which images",
    "images": "How images are read",
    "model": "Which classifier",
    "train": "How the classifier is trained",
    "runtime": "What it runs on",
    "explain": "How images are explained",
    "cluster": "How heatmaps are clustered",
    "groups": "Which groups are compared",
    "auto": "The choice of a grouping and the test for a shortcut",
    "retrain": "How the classifier is repaired",
    "evaluate": "How it is measured",
}
CHOICES = {"EXPLAINERS": "explain.explainer", "CLUSTERERS": "cluster.method", "LEARNERS": "retrain.learner"}


def generated(text: str) -> str:
    """Return a page with its generated parts filled in."""
    return re.sub(r"<!-- generated: (\w+) ?(\w*) -->", lambda part: PARTS[part[1]](*filter(None, [part[2]])), text)


def commands() -> str:
    """Return every command with its arguments and options, as typer describes them."""
    from exmap.cli import app

    group = typer.main.get_command(app)
    context = typer.Context(group, info_name="exmap")
    parts = [_command(name, command, context) for name, command in group.commands.items()]
    return "\n\n".join(parts)


def _command(name: str, command: Any, parent: typer.Context) -> str:
    context = typer.Context(command, parent=parent, info_name=name)
    text = get_docs_for_click(obj=command, ctx=context, name=name, call_prefix="exmap", indent=1)
    text = re.sub(r"^(#+) `(.+)`$", r"\1 \2", text, flags=re.M)
    text = re.sub(r"^\*\*(Usage|Arguments|Options|Commands)\*\*:$", r"*\1*", text, flags=re.M)
    return text.replace("* `--help`: Show this message and exit.\n", "").strip()


def settings() -> str:
    """Return every setting, a table for each section; options of what a section names stand under its own table."""
    rows = describe_settings()
    parts = []
    for section, title in SECTIONS.items():
        own = [row for row in rows if row.name.split(".")[0] == section and not row.owner]
        parts += [f"## {section}", f"{title}.", _rows(own)]
    unknown = {row.name.split(".")[0] for row in rows} - set(SECTIONS)
    if unknown:
        raise ValueError(f"sections of the settings without a title in docs/generate.py: {', '.join(unknown)}")
    return "\n\n".join(parts)


def _rows(rows: Iterable[SettingRow]) -> str:
    return _table(
        ("setting", "allowed", "default", "meaning"),
        ([f"`{row.name}`", _cell(row.allowed), _value(row.default), _meaning(row)] for row in rows),
    )


def _meaning(row: SettingRow) -> str:
    return re.sub(r"\bNone\b", "null", _cell(row.meaning))  # settings are YAML


def names(table: str) -> str:
    """Return the names of one kind of thing, each with what it is and with its options, where it has some."""
    things: Registry = getattr(registry, table)
    if table not in CHOICES:
        return _table(
            ("name", "what it is"), ([f"`{name}`", _cell(_first_paragraph(thing))] for name, thing in things.items())
        )
    parts = []
    for name, thing in things.items():
        parts += [f"### {name}", _first_paragraph(thing)]
        options = list(_options(table, name))
        if options:
            parts.append(_rows(options))
    return "\n\n".join(filter(None, parts))


def _options(table: str, name: str) -> Iterator[SettingRow]:
    """Yield the options of what a section of the settings can name."""
    section, key = CHOICES[table].split(".")
    try:
        chosen = change_settings(Settings(), **{f"{section}__{key}": name})
    except SettingsError as error:  # a thing with an option that has no default
        raise ValueError(f"{name} cannot be described: {error}") from error
    yield from (row for row in describe_settings(chosen) if row.owner and row.name.startswith(f"{section}."))


def presets() -> str:
    """Return the presets, each with the sentence that its file begins with."""
    folder = resources.files("exmap") / "presets"
    lines = {name: (folder / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0] for name in preset_names()}
    return _table(("preset", "what it is"), ([f"`{name}`", _cell(line.lstrip("# "))] for name, line in lines.items()))


def schema(name: str) -> str:
    """Return a JSON schema as tables: the record itself, then each record inside it."""
    path = resources.files("exmap") / "schemas" / f"{name}.schema.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    parts = [_described(tree), _fields(tree)]
    for title, part in sorted(tree.get("$defs", {}).items()):
        parts += [f"### {name}: {title}", _described(part), _fields(part)]
    return "\n\n".join(filter(None, parts))


def _described(part: dict[str, Any]) -> str:
    return part.get("description", "").split("\n\n")[0]


def _fields(part: dict[str, Any]) -> str:
    needed = part.get("required", [])
    return _table(
        ("key", "type", "meaning"),
        (
            [f"`{key}`", _type(value), _cell(value.get("description", "") + ("" if key in needed else " *Optional.*"))]
            for key, value in part.get("properties", {}).items()
        ),
    )


def _type(part: dict[str, Any]) -> str:
    """Return the type of a value of a JSON schema in words."""
    if "$ref" in part:
        return part["$ref"].rsplit("/", 1)[-1]
    if "const" in part:
        return f"`{part['const']}`"
    if "enum" in part:
        return " or ".join(f"`{value}`" for value in part["enum"])
    if "anyOf" in part:
        return " or ".join(_type(one) for one in part["anyOf"])
    kind = part.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        inner = part.get("items") or next(iter(part.get("prefixItems", [])), {})
        return f"list of {_type(inner)}"
    if kind == "object" and isinstance(part.get("additionalProperties"), dict):
        return f"{{name: {_type(part['additionalProperties'])}}}"
    return str(kind)


def file(name: str) -> str:
    """Return a file of the repository's root, such as SECURITY.md, with links as a page of docs/project needs them."""
    text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\((?!https?:|#|mailto:)(?:\./)?([^)]+)\)", r"](../../\1)", text)
    return text.replace("](../../docs/", "](../")


def rules() -> str:
    """Return the rule of every operation, grouped by rule."""
    lines = (line.split(": ", 1) for line in rules_table().splitlines() if ": " in line)
    return _table(
        ("rule", "operations"), ([rule, ", ".join(f"`{name}`" for name in found.split(", "))] for rule, found in lines)
    )


def _first_paragraph(thing: Any) -> str:
    text = getattr(thing, "about", None) or inspect.getdoc(thing)  # a data set says in one line what it is
    paragraph = " ".join((text or "").split("\n\n")[0].split())
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", paragraph).replace("``", "`")


def _value(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`" if str(value) else "empty"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles, rows = list(titles), [list(row) for row in rows]
    if not rows:
        return ""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


PARTS = {part.__name__: part for part in (commands, settings, names, presets, schema, file, rules)}
