import pytest
from docutils import nodes
from sphinx_exercise.nodes import exercise_enumerable_node, solution_node
from sphinx_proof.nodes import proof_node, theorem_node

from press.colab import markdown
from press.colab.markdown import Cell, Folded, Page, UnresolvedError

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
    ("words", "expected"),
    [
        ("two * three", r"two \* three"),
        ("a_b and _c_", r"a_b and \_c\_"),
        ("[x] costs $5 < 6 | `y`", r"\[x\] costs \$5 \< 6 \| \`y\`"),
        ("a\\b", r"a\\b"),
        ("over\n  two lines", "over two lines"),
    ],
)
def test_words_begin_no_markup(words, expected):
    assert markdown.escaped(words) == expected


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("# no", r"\# no"),
        ("- no", r"\- no"),
        ("1. no", r"\1. no"),
        ("> no", r"\> no"),
        ("-1", "-1"),
    ],
)
def test_a_paragraph_begins_no_list_and_no_heading(start, expected):
    assert made(text(start)) == [expected]


def test_mathematics_stands_on_one_line_without_tags():
    assert markdown.mathematics("a<b\n  % a comment\n>c \\% d") == r"a\lt b \gt c \% d"
    assert made(text("so ", math("x\n=1"), ".")) == ["so $x =1$."]


def test_marks_take_no_space_inside():
    strong = nodes.strong("", " loud ")
    assert made(text("a", strong, nodes.emphasis("", "soft"))) == ["a **loud** *soft*"]
    assert made(text(nodes.literal("", "a`b"), " ", nodes.literal("", "c"))) == ["`` a`b `` `c`"]


def test_references_become_links_and_text_where_nothing_can_be_linked():
    here = nodes.reference("", "Theorem 3.1", refid="thm-a", internal=True)
    uri = "chapters/vae.html#thm-b"
    there = nodes.reference("", "Theorem 6.2", refuri=uri, internal=True)
    outside = nodes.reference("", "torch", refuri="https://pytorch.org")
    found = text(here, ", ", there, ", ", outside)
    links = "[Theorem 3.1](#thm-a), {}, [torch](https://pytorch.org)"
    assert made(found) == [links.format("Theorem 6.2")]
    site = page(site="https://o.github.io/n")
    assert made(found, of=site) == [links.format(f"[Theorem 6.2](https://o.github.io/n/{uri})")]


def test_citations_are_collected_once_and_in_order():
    def cite(name):
        uri = f"chapters/bibliography.html#{name}"
        return nodes.reference("", "Who, 1900", refuri=uri, internal=True)

    of = page()
    assert made(text(cite("id2"), cite("id1"), cite("id2")), of=of)[0].startswith(
        "[Who, 1900](#id2)"
    )
    assert of.cited == ["id2", "id1"]


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
    with pytest.raises(UnresolvedError, match="theorem_node .*thm-b.* has no number"):
        made(theorem(text("It holds."), ids=["thm-b"]))


def proof(*body):
    return proof_node("", nodes.admonition("", *body, classes=["proof"]))


def test_a_proof_ends_with_its_sign():
    assert made(proof(text("Proof. So it is."))) == [r"*Proof.* So it is. $\square$"]
    block = nodes.math_block("", "x", number=None)
    assert made(proof(text("Proof. So"), block)) == ["*Proof.* So", "$$x$$", r"$\square$"]


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
    with pytest.raises(UnresolvedError, match="folded with the solution .* 'More.'"):
        made(nodes.section("", exercise(), solution(text("So.")), text("More.")))


def test_a_figure_has_its_caption_below_the_cell():
    figure = nodes.figure("", nodes.image(), nodes.caption("", "a curve"), ids=["fig-a"])
    assert made(cell(2, nodes.container("", figure))) == [Cell(2), "*Figure 3.5: a curve*"]


def test_headings_go_down_with_their_sections():
    inner = nodes.section("", nodes.title("", "Part"), text("words"), ids=["part"])
    outer = nodes.section("", nodes.title("", "Page"), inner, ids=["page"])
    found = made(outer, of=page("part"))
    assert found == ["# Page", '## <a name="part"></a>Part', "words"]


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
    with pytest.raises(UnresolvedError, match="a code cell or a solution inside <theorem_node>"):
        made(theorem(cell(1)))
