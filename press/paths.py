"""Where the rooms of the book are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ROOT / "chapters"
CODE = ROOT / "code"
RECORDS = ROOT / "records"
HTML = ROOT / "_build" / "html"


def executed_chapters(folder: Path = CHAPTERS) -> list[Path]:
    """List the hand-written pages that hold code cells, in alphabetical order.

    Args:
        folder: the folder of chapters.

    Returns:
        The ``.md`` paths; each has, or should have, a notebook of the same name beside it.
    """
    return [path for path in sorted(folder.glob("*.md")) if "```{code-cell}" in path.read_text()]
