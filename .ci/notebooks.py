"""Execute the notebooks that are text, all or those named, and write them beside it without what always changes."""

import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Leave out progress bars, warnings and times, and number the cells in place of random names."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = NotebookNode(kernelspec=kernel, language_info={"name": "python"})
    for i, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{i}", NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main() -> None:
    """Execute all, or those that are named."""
    for text in map(Path, sys.argv[1:] or sorted(FOLDER.glob("*.py"))):
        notebook = jupytext.read(text)
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": text.parent}}).execute()
        nbformat.write(tidy(notebook), text.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()
