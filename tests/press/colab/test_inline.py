import pytest
from docutils import nodes
from markdown_it import MarkdownIt

from press.colab import inline
from press.colab.inline import Page, UnresolvedError


def text(*words):
    return nodes.paragraph("", "", *(nodes.Text(w) if isinstance(w, str) else w for w in words))


def made(*words, of=None):
    return inline.inline(text(*words), of or Page({}))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("two * three", r"two \* three"),
        ("a_b and _c_", r"a_b and \_c\_"),
        ("[x] costs $5 < 6 | `y`", r"\[x\] costs \$5 \< 6 \| \`y\`"),
        ("a\\b", r"a\\b"),
        ("~~x~~ &lt; R&D", r"\~\~x\~\~ \&lt; R&D"),
        ("over\n  two lines", "over two lines"),
    ],
)
def test_words_begin_no_markup(words, expected):
    assert inline.escaped(words) == expected


def test_words_are_shown_as_they_are():
    words = "a*b* _c_ [d](e) <f> `g` ~~h~~ &lt; \\ #"
    shown = MarkdownIt("commonmark").enable("strikethrough").render(inline.escaped(words))
    assert shown == "<p>a*b* _c_ [d](e) &lt;f&gt; `g` ~~h~~ &amp;lt; \\ #</p>\n"


@pytest.mark.parametrize(
    ("tex", "expected"),
    [
        ("a<b\n  % a comment\n>c", r"a\lt b \gt c"),
        ("5\\% < 6", r"5\% \lt 6"),
        ("a \\\\% note\nb", r"a \\ b"),
        (r"\text{ if }a<b\text{ a<b}", r"\text{ if }a\lt b\text{ a<b}"),
    ],
)
def test_mathematics_stands_on_one_line_without_tags(tex, expected):
    assert inline.mathematics(tex) == expected


def test_formulas_stand_between_dollars():
    assert made("so ", nodes.math("", "x\n=1"), ".") == "so $x =1$."


def test_marks_take_no_space_inside():
    strong = nodes.strong("", " a a ")
    assert made("a", strong, nodes.emphasis("", "soft")) == "a **a a** *soft*"
    assert made("H", nodes.subscript("", "2")) == "H<sub>2</sub>"


@pytest.mark.parametrize(
    ("code", "expected"), [("c", "`c`"), ("a`b", "`` a`b ``"), ("a``b", "``` a``b ```")]
)
def test_code_does_not_end_early(code, expected):
    assert made(nodes.literal("", code)) == expected


def reference(words, **where):
    return nodes.reference("", words, **where)


def test_references_become_links_and_text_where_nothing_can_be_linked():
    uri = "chapters/vae.html#thm-b"
    words = (
        reference("Theorem 3.1", refid="thm-a", internal=True),
        ", ",
        reference("Theorem 6.2", refuri=uri, internal=True),
        ", ",
        reference("torch", refuri="https://pytorch.org"),
    )
    links = "[Theorem 3.1](#thm-a), {}, [torch](https://pytorch.org)"
    assert made(*words) == links.format("Theorem 6.2")
    site = Page({}, "https://o.github.io/n")
    assert made(*words, of=site) == links.format(f"[Theorem 6.2](https://o.github.io/n/{uri})")


def test_citations_are_collected_once_and_in_order():
    def cite(name):
        uri = f"chapters/bibliography.html#{name}"
        return reference("Who, 1900", refuri=uri, internal=True)

    of = Page({})
    assert made(cite("id2"), cite("id1"), cite("id2"), of=of).startswith("[Who, 1900](#id2)")
    assert of.cited == ["id2", "id1"]


def test_only_places_that_are_wanted_are_named():
    of = Page({}, wanted=frozenset({"a"}))
    assert of.anchors(nodes.paragraph("", "", ids=["a", "b"])) == '<a name="a"></a>'


def test_a_node_without_a_rule_is_refused():
    with pytest.raises(UnresolvedError, match="<footnote_reference> has no rule inside"):
        made(nodes.footnote_reference())
