"""Turn a resolved page into plain Markdown, which Colab, Jupyter and GitHub show alike.

Sphinx has then replaced every role and directive by nodes: references know their numbers, citations
their words. A node that has no rule here raises, so that nothing of MyST can slip through.
"""

import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from docutils import nodes

from press.colab.inline import Page, inline, mathematics, refused

BOXES = (
    *("admonition", "note", "tip", "important", "hint", "warning", "caution", "attention"),
    *("danger", "error", "seealso", "topic"),
)
# What the press itself puts into pages, and the notebook says in its own words.
OURS = '<dl class="strip">'
_MATHEMATICS = re.compile(r"(\$[^$]*\$)")


@dataclass(frozen=True)
class Cell:
    """The place of a code cell of the page's notebook."""

    index: int


@dataclass(frozen=True)
class Folded:
    """A heading whose section is closed when the notebook is opened."""

    heading: str


Piece = str | Cell | Folded


def pieces(document: nodes.document, page: Page) -> list[Piece]:
    """Turn a page into Markdown and the places of its code cells, in order.

    Args:
        document: the page, every reference resolved.
        page: what the rules need to know.

    Returns:
        Blocks of Markdown, each to be set apart by an empty line; places of cells; folded headings.

    Raises:
        UnresolvedError: if a node has no rule.
    """
    return list(_blocks(document, page, 0))


def _blocks(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    for child in node.children:
        yield from _block(child, page, depth)


def _block(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    rule = BLOCKS.get(_kind(node))
    if rule is None:
        raise refused(node, "has no rule")
    found = list(rule(node, page, depth))
    # Most rules put a place's name into their words; a list or a listing has no room for it.
    anchors = page.anchors(node)
    if anchors and not any(isinstance(piece, str) and anchors in piece for piece in found):
        yield anchors
    yield from found


def _kind(node: nodes.Element) -> str:
    if node.get("nb_element") == "cell_code":
        return "cell_code"
    if "countertype" in node.attributes:
        return "statement"
    if "proof" in node.get("classes", ()) and isinstance(node, nodes.admonition):
        return "proof"
    return node.tagname


def _section(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    yield from _blocks(node, page, depth + 1)


def _title(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    # Before the heading, whose words an outline shows; the title of the page must come first.
    anchors = page.anchors(node.parent)
    heading = f"{'#' * depth} {inline(node, page)}"
    yield from (
        [f"{heading} {anchors}"] if anchors and depth == 1 else filter(None, [anchors, heading])
    )


def _paragraph(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    text = inline(node, page).strip()
    # A sentence may begin as a list, a heading or a quotation does.
    text = re.sub(r"^(\d+)(?=[.)](\s|$))", r"\1\\", text)
    yield page.anchors(node) + re.sub(r"^(#|>|[-+](?=\s))", r"\\\1", text)


def _equation(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    tag = rf" \tag{{{page.number('displaymath', node)}}}" if node.get("number") else ""
    anchors = page.anchors(node)
    yield (f"{anchors}\n\n" if anchors else "") + f"$${mathematics(node.astext())}{tag}$$"


def _listing(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    source = node.get("source") or ""
    language = "python" if source.endswith(".py") else node.get("language") or ""
    language = "" if language in ("none", "default") else language
    _, inside, path = source.partition("/code/gradbook/")
    origin = f"From `gradbook/{path}`:\n\n" if inside else ""
    # A method stands in its module as deep as its class wants it.
    text = textwrap.dedent(node.astext()).strip("\n")
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    yield f"{origin}{fence}{language}\n{text}\n{fence}"


def _list(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    start = node.get("start", 1)
    items = []
    for place, item in enumerate(node.children, start):
        mark = f"{place}. " if node.tagname == "enumerated_list" else "- "
        body = _joined(_blocks(item, page, depth), item)
        items.append(mark + textwrap.indent(body, " " * len(mark)).lstrip())
    tight = all("\n\n" not in item for item in items)
    yield ("\n" if tight else "\n\n").join(items)


def _definitions(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    for item in node.children:
        terms = [x for x in item.children if x.tagname == "term"]
        meanings = [x for x in item.children if x.tagname == "definition"]
        names = ", ".join(f"{page.anchors(x)}**{inline(x, page)}**" for x in terms)
        bodies = [_joined(_blocks(meaning, page, depth), item) for meaning in meanings]
        yield f"{names}: " + "\n\n".join(bodies)


def _table(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    rows = list(node.findall(nodes.row))
    if any(
        entry.get("morecols") or entry.get("morerows") for row in rows for entry in row.children
    ):
        raise refused(node, "has cells that span others")
    lines = [[_entry(entry, page, depth) for entry in row.children] for row in rows]
    if not any(node.findall(nodes.thead)):
        lines.insert(0, [""] * len(lines[0]))
    lines.insert(1, ["---"] * len(lines[0]))
    titles = [f"*{inline(title, page)}*\n\n" for title in node.children if title.tagname == "title"]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    yield page.anchors(node) + "".join(titles) + body


def _entry(entry: nodes.Element, page: Page, depth: int) -> str:
    """A bar would end the cell, in formulas and code too."""
    text = _joined(_blocks(entry, page, depth), entry)
    if "\n" in text:
        raise refused(entry, "holds more than one paragraph")
    parts = _MATHEMATICS.split(text)
    parts[::2] = [re.sub(r"(?<!\\)\|", r"\\|", part) for part in parts[::2]]
    parts[1::2] = [p.replace(r"\|", r"\Vert ").replace("|", r"\vert ") for p in parts[1::2]]
    return "".join(parts)


def _statement(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    number = page.number(node["countertype"], node)
    head = f"{page.anchors(node)}**{node['realtype'].title()} {number}**"
    title = next((inline(x, page).strip() for x in node.children if x.tagname == "title"), "")
    body = [x for x in node.children if x.tagname != "title"]
    words = _joined((piece for part in body for piece in _blocks(part, page, depth)), node)
    yield _quoted(f"{head} {title}".strip() + f"\n\n{words}")


def _proof(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    parts = list(_blocks(node, page, depth))
    begins = re.compile(r"^((?:<a [^>]*></a>)*)Proof\. ?")
    if isinstance(parts[0], str) and begins.match(parts[0]):
        parts[0] = begins.sub(r"\1*Proof.* ", parts[0])
    else:
        parts.insert(0, "*Proof.*")
    if node.children[-1].tagname == "paragraph":
        parts[-1] = f"{parts[-1]} $\\square$"
    else:
        parts.append(r"$\square$")
    yield from parts


def _boxed(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    title = next((inline(x, page) for x in node.children if x.tagname == "title"), None)
    head = f"**{title or node.tagname.title()}**\n\n"
    body = [x for x in node.children if x.tagname != "title"]
    words = _joined((piece for part in body for piece in _block(part, page, depth)), node)
    yield _quoted(page.anchors(node) + head + words)


def _exercise(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    title = next((inline(x, page).strip() for x in node.children if x.tagname == "title"), "")
    number = page.number("exercise", node)
    if anchors := page.anchors(node):
        yield anchors
    yield f"{'#' * (depth + 1)} Exercise {number} {title}".rstrip()
    for part in node.children:
        if part.tagname != "title":
            yield from _blocks(part, page, depth + 1)


def _solution(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    after = node.next_node(descend=False, siblings=True)
    if after is not None and after.tagname != "exercise_enumerable_node":
        raise refused(after, "would be folded away with the solution before it")
    title = next(x for x in node.children if x.tagname == "title")
    yield Folded(f"{'#' * (depth + 2)} {' '.join(title.astext().split())}")
    for part in node.children:
        if part is not title:
            yield from _blocks(part, page, depth + 2)


def _cell(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    figures = list(node.findall(nodes.figure))
    # Above the picture, so that who follows a link sees it.
    yield from filter(None, map(page.anchors, figures))
    yield Cell(node["cell_index"])
    for figure in figures:
        caption = next(figure.findall(nodes.caption))
        yield f"*Figure {page.number('figure', figure)}: {inline(caption, page)}*"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))


def _joined(found: Iterator[Piece], where: nodes.Element) -> str:
    """Join blocks that must stay together; a cell cannot stand in a quotation or a list."""
    blocks = list(found)
    if any(not isinstance(block, str) for block in blocks):
        raise refused(where, "cannot hold a code cell or a solution")
    return "\n\n".join(blocks)


def _raw(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    if not node.astext().startswith(OURS):
        raise refused(node, "is HTML, which no rule reads")
    yield from ()


def _nothing(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    yield from ()


BLOCKS: dict[str, Callable[[nodes.Element, Page, int], Iterator[Piece]]] = {
    "section": _section,
    "title": _title,
    "paragraph": _paragraph,
    "math_block": _equation,
    "literal_block": _listing,
    "bullet_list": _list,
    "enumerated_list": _list,
    "definition_list": _definitions,
    "table": _table,
    "statement": _statement,
    "proof": _proof,
    "proof_node": _blocks,
    "exercise_enumerable_node": _exercise,
    "solution_node": _solution,
    "cell_code": _cell,
    "block_quote": lambda node, page, depth: iter(
        [_quoted(_joined(_blocks(node, page, depth), node))]
    ),
    # Where a place is marked, the node that follows carries its name.
    "target": _nothing,
    "comment": _nothing,
    "raw": _raw,
    "transition": lambda node, page, depth: iter(["---"]),
    **dict.fromkeys(BOXES, _boxed),
}
