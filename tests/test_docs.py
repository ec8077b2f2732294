"""The commands that the documents show exist, with the options that they are shown with."""

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from gridvlp.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def commands_in(text: str) -> list[str]:
    """What begins with gridvlp in code blocks and in the text, without comments."""
    blocks = re.findall(r"^(?:```\w*\n(.*?)^```|((?:    .*\n)+))", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(a or b for a, b in blocks).replace("\\\n", " ").splitlines()
    shown = [line.strip().removeprefix("$ ") for line in lines]
    shown += re.findall(r"`(gridvlp [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line.partition(" #")[0] for line in shown if line.startswith("gridvlp ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_shown_can_be_parsed(page):
    for line in commands_in(page.read_text()):
        words = [word for word in shlex.split(line)[1:] if word not in ("...", "[...]")]
        optional = [word for word in words if word.startswith("[")]
        if optional:  # a synopsis
            words = [word.strip("[]") for word in words]
        if words[0].startswith("-") or words[0].isupper():
            continue
        command = cli.commands[words[0]]
        context = click.Context(command, info_name=words[0], resilient_parsing=True)
        _, left, _ = command.make_parser(context).parse_args(list(words[1:]))
        assert not left, line


def test_the_search_for_commands_finds_them():
    block = "```\n$ gridvlp a \\\n   --b 1  # c\nother\n```\n"
    text = f"a `gridvlp verify x.zarr` b\n\n{block}\n    gridvlp d\n"
    assert commands_in(text) == ["gridvlp a     --b 1 ", "gridvlp d", "gridvlp verify x.zarr"]


def test_pages_of_the_site_exist():
    def pages(section):
        for value in section:
            if isinstance(value, dict):
                value = next(iter(value.values()))
            yield from pages(value) if isinstance(value, list) else [value]

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    made = {"notebook.md"}  # by docs/hooks.py
    assert [p for p in pages(nav) if p not in made and not (ROOT / "docs" / p).is_file()] == []


def test_links_of_the_readme_exist():
    links = re.findall(r"\]\(([^)#\s]+)", (ROOT / "README.md").read_text())
    assert "docs/data.md" in links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_pages_about_commands_are_about_commands_that_exist():
    assert {page.stem for page in ROOT.glob("docs/commands/*.md")} <= cli.commands.keys()
