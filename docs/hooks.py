"""A page for every command of the command line, from its own help.

docs/commands/NAME.md may say more than the help does; a command without such a file gets a page all
the same. The example notebook becomes a page, too.
"""

import json
from pathlib import Path

from mkdocs.structure.files import File

from gridvlp.cli import cli

PAGE = """::: mkdocs-click
    :module: gridvlp.cli
    :command: {attribute}
    :prog_name: gridvlp {name}
    :depth: 0
    :style: plain
"""


def on_config(config):
    """List the commands, in the order of the pipeline."""
    sections = {title: pages for section in config.nav for title, pages in section.items()}
    sections["Commands"][:] = [{name: f"commands/{name}.md"} for name in cli.commands]
    return config


def on_files(files, config):
    """Make the pages: what docs/commands/NAME.md says, then the command's help."""
    for name, command in cli.commands.items():
        path = f"commands/{name}.md"
        written = files.get_file_from_path(path)
        more = ""
        if written is not None:
            more = "\n## Examples\n\n" + written.content_string
            files.remove(written)
        page = PAGE.format(name=name, attribute=command.callback.__name__) + more
        files.append(File.generated(config, path, content=page))
    notebook = json.loads(Path(config.docs_dir, "notebook.ipynb").read_text())
    shown = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        shown.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    link = "\n\n[The notebook itself](notebook.ipynb)"
    page = File.generated(config, "notebook.md", content="\n\n".join(shown) + link)
    files.append(page)
    return files
