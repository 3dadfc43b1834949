"""Write what stands inside a paragraph as plain Markdown: words, formulas, links, citations."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from docutils import nodes

SPECIAL = re.compile(r"([\\`*\[\]<$|~]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_]))")
# Inside words of a formula a tag cannot be named by a command of mathematics.
_WORDS = re.compile(r"(\\(?:text|mathrm|textrm|operatorname\*?)\{[^{}]*\})")


class UnresolvedError(ValueError):
    """A page holds a kind of node that has no rule in plain Markdown."""


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
        raise refused(node, f"has no number of kind {kind!r}")

    def anchors(self, node: nodes.Element) -> str:
        """Mark the places that the page refers to: Colab keeps the names of anchors."""
        return "".join(f'<a name="{name}"></a>' for name in node["ids"] if name in self.wanted)


def refused(node: nodes.Node, why: str) -> UnresolvedError:
    """Say which node cannot be written, and where it stands.

    Args:
        node: the node.
        why: the reason.

    Returns:
        The error, to be raised.
    """
    line = next((n.line for n in (node, *_above(node)) if n.line), None)
    where = f"line {line}: " if line else ""
    return UnresolvedError(f"{where}<{node.tagname}> {why}: {node.astext()[:60]!r}")


def _above(node: nodes.Node) -> list[nodes.Node]:
    return [] if node.parent is None else [node.parent, *_above(node.parent)]


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
    return "".join(_one(child, page) for child in node.children)


def mathematics(tex: str) -> str:
    """Write TeX on one line, so that no renderer of Markdown reads a list or a tag into it.

    Args:
        tex: such as ``a<b`` over several lines.

    Returns:
        The same on one line, without its comments, with ``<`` and ``>`` by name outside of words.
    """
    tex = re.sub(r"(?<!\\)((?:\\\\)*)%.*", r"\1", tex)
    parts = _WORDS.split(tex)
    parts[::2] = [p.replace("<", r"\lt ").replace(">", r"\gt ") for p in parts[::2]]
    return " ".join("".join(parts).split())


def escaped(text: str) -> str:
    """Write words so that nothing in them begins markup.

    Args:
        text: any words.

    Returns:
        Markdown that shows them, on one line.
    """
    return SPECIAL.sub(r"\\\1", re.sub(r"\s*\n\s*", " ", text))


def _one(node: nodes.Node, page: Page) -> str:
    if isinstance(node, nodes.Text):
        return escaped(node.astext())
    rule = INLINE.get(node.tagname)
    if rule is None:
        raise refused(node, "has no rule inside a paragraph")
    return rule(node, page)


def _code(node: nodes.Element, page: Page) -> str:
    text = " ".join(node.astext().split())
    runs = re.findall("`+", text)
    if not runs:
        return f"`{text}`"
    fence = "`" * (max(map(len, runs)) + 1)
    return f"{fence} {text} {fence}"


def _marked(before: str, after: str) -> Callable[[nodes.Element, Page], str]:
    def rule(node: nodes.Element, page: Page) -> str:
        # Markdown takes no space inside its marks.
        text = inline(node, page)
        core = text.strip()
        start = text[: len(text) - len(text.lstrip())]
        end = text[len(text.rstrip()) :]
        return f"{start}{before}{core}{after}{end}" if core else text

    return rule


def _reference(node: nodes.Element, page: Page) -> str:
    text = inline(node, page).strip()
    if node.get("refid"):
        return f"[{text}](#{node['refid']})"
    target = node["refuri"]
    if not node.get("internal") or target.startswith("#"):
        return f"[{text}]({target})"
    path, _, name = target.partition("#")
    if path == "chapters/bibliography.html":
        page.cited += [name] if name not in page.cited else []
        return f"[{text}](#{name})"
    return f"[{text}]({page.site}/{target})" if page.site else text


INLINE: dict[str, Callable[[nodes.Element, Page], str]] = {
    "emphasis": _marked("*", "*"),
    "strong": _marked("**", "**"),
    "subscript": _marked("<sub>", "</sub>"),
    "superscript": _marked("<sup>", "</sup>"),
    "literal": _code,
    "math": lambda node, page: f"${mathematics(node.astext())}$",
    "inline": inline,
    "reference": _reference,
    "number_reference": _reference,
    "target": lambda node, page: page.anchors(node),
}
