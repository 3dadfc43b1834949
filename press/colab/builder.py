from sphinx.builders import Builder
from pathlib import Path
from docutils import nodes
from press.colab import markdown
import pickle


class ColabBuilder(Builder):
    name = "colab"
    format = "text"

    def get_outdated_docs(self):
        return self.env.found_docs

    def get_target_uri(self, docname, typ=None):
        return docname + ".html"

    def get_relative_uri(self, a, b, typ=None):
        return b + ".html"

    def prepare_writing(self, docnames):
        pass

    def write_doc(self, docname, doctree):
        if not self.env.doc2path(docname).endswith(".ipynb"):
            return
        wanted = frozenset(
            n["refid"]
            for n in doctree.findall(nodes.Element)
            if n.get("refid") and n.tagname != "target"
        ) | frozenset(
            n["refuri"][1:]
            for n in doctree.findall(nodes.reference)
            if n.get("refuri", "").startswith("#")
        )
        page = markdown.Page(self.env.toc_fignumbers.get(docname, {}), "", wanted)
        try:
            out = markdown.pieces(doctree, page)
        except markdown.UnresolvedError as e:
            print("FAIL", docname, e)
            return
        p = Path(self.outdir, docname.replace("/", "__") + ".md")
        p.write_text("\n\n".join(map(str, out)))
        print(docname, len(out), len(page.cited))

    def finish(self):
        pass


def setup(app):
    app.add_builder(ColabBuilder)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
