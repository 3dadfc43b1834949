import html

import pytest
from docutils import nodes
from markdown_it import MarkdownIt
from sphinx_exercise.nodes import exercise_enumerable_node, solution_node
from sphinx_proof.nodes import proof_node, theorem_node

from press.colab import markdown
from press.colab.inline import Page, UnresolvedError
from press.colab.markdown import Cell, Folded

NUMBERS = {"theorem": {"thm-a": (3, 1)}, "displaymath": {"equation-eq-a": (3, 2)}}
NUMBERS |= {"exercise": {"ex-a": (3, 4)}, "figure": {"fig-a": (3, 5)}}


def page(*wanted, site=""):
    return Page(NUMBERS, site, frozenset(wanted))


def text(*words):
    return nodes.paragraph("", "", *(nodes.Text(w) if isinstance(w, str) else w for w in words))


def made(*blocks, of=None):
    return markdown.pieces(nodes.container("", *blocks), of or page())


def cell(index, *children):
    return nodes.container("", *children, nb_element="cell_code", cell_index=index)


def math(tex):
    return nodes.math(tex, tex)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("# no", r"\# no"),
        ("- no", r"\- no"),
        ("1. no", r"1\. no"),
        ("> no", r"\> no"),
        ("2026.", r"2026\."),
        ("3.5 no", "3.5 no"),
        ("-1", "-1"),
    ],
)
def test_a_paragraph_begins_no_list_and_no_heading(start, expected):
    assert made(text(start)) == [expected]
    shown = MarkdownIt("commonmark").render(expected)
    assert shown == f"<p>{html.escape(start)}</p>\n"


def test_equations_carry_their_number_and_their_name():
    plain = nodes.math_block("", "x\n", number=None)
    numbered = nodes.math_block("", "x=y", number=2, ids=["equation-eq-a"])
    assert made(plain, numbered) == ["$$x$$", r"$$x=y \tag{3.2}$$"]
    anchor = '<a name="equation-eq-a"></a>'
    assert made(numbered, of=page("equation-eq-a")) == [anchor + "\n\n" + r"$$x=y \tag{3.2}$$"]


def theorem(*body, **attributes):
    names = {"ids": ["thm-a"], "countertype": "theorem", "realtype": "theorem"} | attributes
    return theorem_node("", nodes.title("", " (First)"), nodes.section("", *body), **names)


def test_a_theorem_is_quoted_with_its_number_and_title():
    of = page("thm-a")
    block = nodes.math_block("", "x", number=None)
    assert made(theorem(text("It holds:"), block), of=of) == [
        '> <a name="thm-a"></a>**Theorem 3.1** (First)\n>\n> It holds:\n>\n> $$x$$'
    ]


def test_what_has_no_number_is_refused():
    with pytest.raises(UnresolvedError, match="<theorem_node> has no number of kind 'theorem'"):
        made(theorem(text("It holds."), ids=["thm-b"]))


def proof(*body):
    return proof_node("", nodes.admonition("", *body, classes=["proof"]))


def test_a_proof_ends_with_its_sign():
    assert made(proof(text("Proof. So it is."))) == [r"*Proof.* So it is. $\square$"]
    block = nodes.math_block("", "x", number=None)
    assert made(proof(text("Proof. So"), block)) == ["*Proof.* So", "$$x$$", r"$\square$"]
    assert made(proof(text("Proof. So"), text("From 3."))) == ["*Proof.* So", r"From 3. $\square$"]
    items = nodes.bullet_list("", nodes.list_item("", text("a")))
    assert made(proof(items, text("So."))) == ["*Proof.*", "- a", r"So. $\square$"]
    assert made(proof(cell(1), text("So."))) == ["*Proof.*", Cell(1), r"So. $\square$"]


def exercise():
    title = nodes.title("", " (Why)", title="Exercise %s")
    return exercise_enumerable_node(
        "", title, nodes.section("", text("Why?")), ids=["ex-a"], type="exercise"
    )


def solution(*body):
    title = nodes.title("", "Solution to Exercise 3.4 (Why)")
    return solution_node("", title, nodes.section("", *body), ids=["s"])


def test_a_solution_is_a_heading_that_folds_and_its_cells_stay_cells():
    found = made(nodes.section("", exercise(), solution(text("So."), cell(7)), exercise()))
    ask = "## Exercise 3.4 (Why)"
    fold = Folded("### Solution to Exercise 3.4 (Why)")
    assert found == [ask, "Why?", fold, "So.", Cell(7), ask, "Why?"]


def test_what_would_be_folded_with_a_solution_is_refused():
    with pytest.raises(UnresolvedError, match="<paragraph> would be folded away .*: 'More.'"):
        made(nodes.section("", exercise(), solution(text("So.")), text("More.")))


def test_a_figure_has_its_caption_below_the_cell():
    figure = nodes.figure("", nodes.image(), nodes.caption("", "a curve"), ids=["fig-a"])
    block = cell(2, nodes.container("", figure))
    assert made(block) == [Cell(2), "*Figure 3.5: a curve*"]
    assert made(block, of=page("fig-a"))[:2] == ['<a name="fig-a"></a>', Cell(2)]


def test_headings_go_down_with_their_sections():
    inner = nodes.section("", nodes.title("", "Part"), text("words"), ids=["part"])
    outer = nodes.section("", nodes.title("", "Page"), inner, ids=["page"])
    found = made(outer, of=page("part"))
    assert found == ["# Page", '<a name="part"></a>', "## Part", "words"]
    assert made(outer, of=page("page"))[0] == '# Page <a name="page"></a>'


def test_a_listing_says_which_module_it_is_from():
    source = "    def f():\n        return '```'\n"
    block = nodes.literal_block(source, source, source="/any/code/gradbook/peft/lora.py")
    expected = "From `gradbook/peft/lora.py`:\n\n````python\ndef f():\n    return '```'\n````"
    assert made(block) == [expected]
    assert made(nodes.literal_block("$ ls", "$ ls", language="console")) == [
        "```console\n$ ls\n```"
    ]


def test_lists_keep_their_numbers_and_indent_what_belongs_to_an_item():
    def item(*blocks):
        return nodes.list_item("", *blocks)

    numbered = nodes.enumerated_list("", item(text("a")), item(text("b")), start=3)
    assert made(numbered) == ["3. a\n4. b"]
    block = nodes.math_block("", "x", number=None)
    assert made(nodes.bullet_list("", item(text("a"), block), item(text("b")))) == [
        "- a\n\n  $$x$$\n\n- b"
    ]


def test_a_table_is_one_of_markdown():
    def row(*cells):
        return nodes.row("", *(nodes.entry("", text(c)) for c in cells))

    body = nodes.tgroup("", nodes.thead("", row("n", "x")), nodes.tbody("", row("1", math("a<b"))))
    assert made(nodes.table("", body)) == ["| n | x |\n| --- | --- |\n| 1 | $a\\lt b$ |"]


def table(*rows, head=None, **spans):
    def row(cells):
        return nodes.row("", *(nodes.entry("", text(c), **spans) for c in cells))

    parts = [nodes.thead("", row(head))] if head else []
    return nodes.table("", nodes.tgroup("", *parts, nodes.tbody("", *map(row, rows))))


def test_a_bar_does_not_end_a_cell():
    found = table((math(r"p(x|y)"), math(r"\|x\|"), nodes.literal("", "a|b"), "c|d"), head="1234")
    last = r"| $p(x\vert y)$ | $\Vert x\Vert $ | `a\|b` | c\|d |"
    assert made(found)[0].splitlines()[-1] == last
    shown = MarkdownIt("commonmark").enable("table").render(made(found)[0])
    assert "<code>a|b</code>" in shown
    assert "<td>c|d</td>" in shown


def test_a_table_without_a_head_keeps_its_first_row():
    assert made(table("ab")) == ["|  |  |\n| --- | --- |\n| a | b |"]


def test_cells_that_span_others_are_refused():
    with pytest.raises(UnresolvedError, match="<table> has cells that span others"):
        made(table("ab", morecols=1))


def test_every_meaning_of_a_term_is_kept():
    meanings = [nodes.definition("", text("one")), nodes.definition("", text("two"))]
    item = nodes.definition_list_item("", nodes.term("", "", nodes.Text("word")), *meanings)
    assert made(nodes.definition_list("", item)) == ["**word**: one\n\ntwo"]


def test_a_place_that_is_wanted_is_named_whatever_it_is():
    items = nodes.bullet_list("", nodes.list_item("", text("a")), ids=["m"])
    assert made(items, of=page("m")) == ['<a name="m"></a>', "- a"]
    assert made(text("a"), items) == ["a", "- a"]


def test_html_is_refused_but_for_the_strip_of_facts():
    strip = nodes.raw("", '<dl class="strip">x</dl>', format="html")
    assert made(strip, text("a")) == ["a"]
    with pytest.raises(UnresolvedError, match="<raw> is HTML"):
        made(nodes.raw("", "<details>words</details>", format="html"))


def test_a_refusal_says_where():
    lost = nodes.footnote("", text("x"))
    lost.line = 12
    with pytest.raises(UnresolvedError, match="line 12: <footnote> has no rule: 'x'"):
        made(lost)


def test_a_box_is_quoted_under_its_title():
    box = nodes.admonition("", nodes.title("", "Takeaway"), text("Draw."), classes=["tip"])
    assert made(box) == ["> **Takeaway**\n>\n> Draw."]


@pytest.mark.parametrize(
    "block", [nodes.footnote("", text("x")), nodes.paragraph("", "", nodes.footnote_reference())]
)
def test_a_node_without_a_rule_is_refused(block):
    with pytest.raises(UnresolvedError, match="footnote"):
        made(block)


def test_a_cell_cannot_stand_in_a_quotation():
    with pytest.raises(
        UnresolvedError, match="<theorem_node> cannot hold a code cell or a solution"
    ):
        made(theorem(cell(1)))
