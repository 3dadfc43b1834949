"""Turn a resolved page into plain Markdown, which Colab, Jupyter and GitHub show alike.

Sphinx has then replaced every role and directive by nodes: references know their numbers, citations
their words. A node that has no rule here raises, so that nothing of MyST can slip through.
"""

import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from docutils import nodes

SPECIAL = re.compile(r"([\\`*\[\]<$|]|(?<![^\W_])_|_(?![^\W_]))")
LINE_START = re.compile(r"^(#|>|[-+](?=\s)|\d+(?=[.)]\s))")
QUOTED = {"tip", "important", "note", "admonition"}


class UnresolvedError(ValueError):
    """A page holds a kind of node that has no rule in plain Markdown."""


@dataclass(frozen=True)
class Cell:
    """The place of a code cell of the page's notebook."""

    index: int


@dataclass(frozen=True)
class Folded:
    """A heading whose section is closed when the notebook is opened."""

    heading: str


Piece = str | Cell | Folded


@dataclass
class Page:
    """What the rules need to know of the page that they are in.

    ``numbers`` holds, by kind and identifier, the numbers of figures, theorems, exercises and equations;
    ``site`` is the address of the site or empty; ``wanted`` the identifiers that something refers to;
    ``cited`` collects the identifiers of the works that are cited, in order.
    """

    numbers: dict[str, dict[str, tuple[int, ...]]]
    site: str = ""
    wanted: frozenset[str] = frozenset()
    cited: list[str] = field(default_factory=list)

    def number(self, kind: str, node: nodes.Element) -> str:
        """Write the number of a node, such as ``3.1``."""
        for name in node["ids"]:
            if name in self.numbers.get(kind, {}):
                return ".".join(map(str, self.numbers[kind][name]))
        raise UnresolvedError(f"{node.tagname} {node['ids']} has no number of kind {kind!r}")

    def anchors(self, node: nodes.Element) -> str:
        """Mark the places that the page refers to: Colab keeps the names of anchors."""
        return "".join(f'<a name="{name}"></a>' for name in node["ids"] if name in self.wanted)


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


def inline(node: nodes.Element, page: Page) -> str:
    """Write what stands inside a paragraph, on one line.

    Args:
        node: a paragraph, a title, or what may stand in one.
        page: what the rules need to know.

    Returns:
        Markdown without line breaks.

    Raises:
        UnresolvedError: if a node has no rule.
    """
    return "".join(_one_inline(child, page) for child in node.children)


def mathematics(tex: str) -> str:
    """Write TeX on one line, so that no renderer of Markdown reads a list or a tag into it.

    Args:
        tex: such as ``a<b`` over several lines.

    Returns:
        The same on one line, with ``<`` and ``>`` by name.
    """
    tex = re.sub(r"(?<!\\)%.*", "", tex)
    tex = tex.replace("<", r"\lt ").replace(">", r"\gt ")
    return " ".join(tex.split())


def escaped(text: str) -> str:
    """Write words so that nothing in them begins markup.

    Args:
        text: any words.

    Returns:
        Markdown that shows them, on one line.
    """
    return SPECIAL.sub(r"\\\1", re.sub(r"\s*\n\s*", " ", text))


def _one_inline(node: nodes.Node, page: Page) -> str:
    if isinstance(node, nodes.Text):
        return escaped(node.astext())
    rule = INLINE.get(node.tagname)
    if rule is None:
        raise UnresolvedError(f"<{node.tagname}> inside a paragraph: {node.astext()[:60]!r}")
    return rule(node, page)


def _code(node: nodes.Element, page: Page) -> str:
    text = " ".join(node.astext().split())
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _marked(mark: str) -> Callable[[nodes.Element, Page], str]:
    def rule(node: nodes.Element, page: Page) -> str:
        # Markdown takes no space inside its marks.
        text = inline(node, page)
        core = text.strip()
        return text.replace(core, f"{mark}{core}{mark}") if core else text

    return rule


def _reference(node: nodes.Element, page: Page) -> str:
    text = inline(node, page).strip()
    if node.get("refid"):
        return f"[{text}](#{node['refid']})"
    target = node["refuri"]
    if not node.get("internal"):
        return f"[{text}]({target})"
    if target.startswith("#"):
        return f"[{text}]({target})"
    path, _, name = target.partition("#")
    if path == "chapters/bibliography.html":
        page.cited += [name] if name not in page.cited else []
        return f"[{text}](#{name})"
    return f"[{text}]({page.site}/{target})" if page.site else text


INLINE: dict[str, Callable[[nodes.Element, Page], str]] = {
    "emphasis": _marked("*"),
    "strong": _marked("**"),
    "literal": _code,
    "math": lambda node, page: f"${mathematics(node.astext())}$",
    "inline": inline,
    "reference": _reference,
    "number_reference": _reference,
    "target": lambda node, page: page.anchors(node),
}


def _blocks(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    for child in node.children:
        kind = _kind(child)
        rule = BLOCKS.get(kind)
        if rule is None:
            raise UnresolvedError(f"<{kind}>: {child.astext()[:60]!r}")
        yield from rule(child, page, depth)


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
    yield f"{'#' * depth} {page.anchors(node.parent)}{inline(node, page)}"


def _paragraph(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    text = inline(node, page).strip()
    yield page.anchors(node) + LINE_START.sub(r"\\\1", text)


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
        term, meaning = item.children[0], item.children[-1]
        body = _joined(_blocks(meaning, page, depth), item)
        yield f"{page.anchors(term)}**{inline(term, page)}**: {body}"


def _table(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    rows = [
        [_joined(_blocks(entry, page, depth), entry) for entry in row.children]
        for row in node.findall(nodes.row)
    ]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if any("\n" in line for line in lines):
        raise UnresolvedError("a cell of a table holds more than one paragraph")
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    titles = [f"*{inline(title, page)}*\n\n" for title in node.children if title.tagname == "title"]
    yield page.anchors(node) + "".join(titles) + "\n".join(lines)


def _statement(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    number = page.number(node["countertype"], node)
    head = f"{page.anchors(node)}**{node['realtype'].title()} {number}**"
    title = next((inline(x, page).strip() for x in node.children if x.tagname == "title"), "")
    body = [x for x in node.children if x.tagname != "title"]
    words = _joined((piece for part in body for piece in _blocks(part, page, depth)), node)
    yield _quoted(f"{head} {title}".strip() + f"\n\n{words}")


def _proof(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    parts = list(_blocks(node, page, depth))
    parts[0] = re.sub(r"^((?:<a [^>]*></a>)*)Proof\. ?", r"\1*Proof.* ", parts[0])
    last = parts[-1]
    if isinstance(last, str) and not re.match(r"[$|`\-0-9]|From", last) and "\n" not in last:
        parts[-1] = f"{last} $\\square$"
    else:
        parts.append(r"$\square$")
    yield from parts


def _boxed(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    title = next((inline(x, page) for x in node.children if x.tagname == "title"), None)
    head = f"**{title or node.tagname.title()}**\n\n"
    body = [x for x in node.children if x.tagname != "title"]
    words = _joined((piece for part in body for piece in _one_block(part, page, depth)), node)
    yield _quoted(page.anchors(node) + head + words)


def _one_block(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    holder = nodes.container()
    holder.children = [node]
    return _blocks(holder, page, depth)


def _exercise(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    title = next((inline(x, page).strip() for x in node.children if x.tagname == "title"), "")
    number = page.number("exercise", node)
    yield f"{'#' * (depth + 1)} {page.anchors(node)}Exercise {number} {title}".rstrip()
    for part in node.children:
        if part.tagname != "title":
            yield from _blocks(part, page, depth + 1)


def _solution(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    after = node.next_node(descend=False, siblings=True)
    if after is not None and after.tagname != "exercise_enumerable_node":
        raise UnresolvedError(f"folded with the solution {node['ids']}: {after.astext()[:60]!r}")
    title = next(x for x in node.children if x.tagname == "title")
    yield Folded(f"{'#' * (depth + 2)} {' '.join(title.astext().split())}")
    for part in node.children:
        if part is not title:
            yield from _blocks(part, page, depth + 2)


def _cell(node: nodes.Element, page: Page, depth: int) -> Iterator[Piece]:
    yield Cell(node["cell_index"])
    for figure in node.findall(nodes.figure):
        number = page.number("figure", figure)
        caption = next(figure.findall(nodes.caption))
        yield f"{page.anchors(figure)}*Figure {number}: {inline(caption, page)}*"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))


def _joined(found: Iterator[Piece], where: nodes.Element) -> str:
    """Join blocks that must stay together; a cell cannot stand in a quotation or a list."""
    blocks = list(found)
    if any(not isinstance(block, str) for block in blocks):
        raise UnresolvedError(f"a code cell or a solution inside <{where.tagname}>")
    return "\n\n".join(blocks)


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
    # The strip of facts; the notebook says them in its own words.
    "raw": _nothing,
    **dict.fromkeys(QUOTED, _boxed),
}
