"""Settings files: YAML of `option: value` lines in a section for each command.

Values are text, as they stand in the file, and options read them as on the command line: a date, an
``on`` or a number is what was written, never what YAML would make of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from gridvlp.errors import UserError, first_line

MOST_BYTES = 100_000  # of a file; PyYAML reads some 50 kB a second
NULL, TEXT = "tag:yaml.org,2002:null", "tag:yaml.org,2002:str"


@dataclass(frozen=True)
class Setting:
    """A value of a settings file, or a list of them, and its line from 1."""

    value: str | list[str]
    line: int


class _TextLoader(yaml.SafeLoader):
    """Reads every value as text; nothing at all is null."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012


_TextLoader.add_implicit_resolver(NULL, re.compile("^(~|null|Null|NULL|)$"), ["~", "n", "N", ""])


def read_settings(path: Path) -> dict[str, dict[str, Setting]]:
    """The sections of a settings file by their titles.

    Raises:
        UserError: the file cannot be read, is not YAML, or holds something else than sections of
            options with a text or a list of texts each.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(f"{path} has more than {MOST_BYTES:,} bytes: is it a settings file?")
        root = yaml.compose(content, Loader=_TextLoader)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}," if error.problem_mark else ""
        raise UserError(
            f"{path}{line} cannot be read as YAML: {_short(str(error.problem or error.context))}."
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} cannot be read as YAML: {_short(first_line(error))}") from error
    except RecursionError as error:
        raise UserError(f"{path} cannot be read as YAML: it is nested too deeply.") from error
    if root is None or root.tag == NULL:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path} must have a section for each command, as in recipes/.")
    sections: dict[str, dict[str, Setting]] = {}
    for title, node, where in _entries(path, root, "the file"):
        if node.tag == NULL:
            sections[title] = {}
        elif isinstance(node, yaml.MappingNode):
            sections[title] = {
                name: Setting(_value(f"{at}: {title}: {name}", value), value.start_mark.line + 1)
                for name, value, at in _entries(path, node, f"section {title!r}")
            }
        else:
            raise UserError(f"{where}: section {title!r} must hold `option: value` lines.")
    return sections


def _entries(
    path: Path, mapping: yaml.MappingNode, what: str
) -> Iterator[tuple[str, yaml.Node, str]]:
    """Names and values of a mapping, and where each stands."""
    seen = set()
    for key, value in mapping.value:
        where = f"{path}, line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode) or key.tag not in (TEXT, NULL):
            raise UserError(f"{where}: a name is wanted before the colon.")
        if key.value == "<<":
            raise UserError(f"{where}: sections are not merged (<<): write the lines out.")
        name = _short(key.value)
        if key.value in seen:
            raise UserError(f"{where}: {name!r} is twice in {what}.")
        seen.add(key.value)
        yield name, value, where


def _value(where: str, node: yaml.Node) -> str | list[str]:
    if isinstance(node, yaml.SequenceNode):
        return [_text(where, item) for item in node.value]
    return _text(where, node)


def _text(where: str, node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise UserError(f"{where} takes a value or a list of values, and nothing deeper.")
    if node.tag == NULL or not node.value:
        raise UserError(f"{where} has no value: leave the line out for the default.")
    if node.tag != TEXT:
        raise UserError(f"{where} has the tag {_short(node.tag)!r}: give the plain value.")
    text: str = node.value
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{where}: {_short(text)!r} has a character that no value can have.")
    return text


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "..."
