"""The site as a reader's browser shows it: what a page asks for, complains about, and leaves unrendered.

Pages are opened from their ``file://`` address with the network off. Each check is a function from an open
page to a list of faults in words; an empty list is a sound page.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from press.paths import HTML, ROOT

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGE = "chromium"  # Debian's and Ubuntu's name for it
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
EVERY_RULE: dict = {}
COLOURS = {"runOnly": ["color-contrast", "link-in-text-block"]}  # what a theme can change
HERE = ("file", "data")
RAW = (r"$$", r"\(", r"\[", r"\begin{", "{prf:ref}", "{eq}", "{numref}", "{ref}", "{cite", ":::")

_TEXTS = """
() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) {
    const shown = walker.currentNode;
    if (!shown.parentElement.closest("code, pre, script, style, noscript, annotation"))
      texts.push(shown.data);
  }
  return texts;
}
"""
_BROKEN_FORMULAS = "all => all.map(x => x.textContent)"
# Two frames, in which the page's own observers see what has changed.
_FRAMES = "for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);"
_WIDTH = f"""
async () => {{
  {_FRAMES}
  return [document.documentElement.scrollWidth, window.innerWidth];
}}
"""
_STICKING_OUT = """
() => {
  const scrolls = x => x && x !== document.body &&
    (getComputedStyle(x).overflowX !== "visible" || scrolls(x.parentElement));
  return [...document.querySelectorAll("body *")]
    .filter(x => x.getBoundingClientRect().right > window.innerWidth + 1 && !scrolls(x))
    .map(x => `${x.localName}.${x.className}`)
    .slice(0, 3);
}
"""
_HIDDEN_FORMULAS = """
() => [...document.querySelectorAll(".math")].flatMap(formula => {
  const text = formula.querySelector("annotation").textContent.trim().slice(0, 60);
  const cut = getComputedStyle(formula).overflowX === "hidden" &&
    formula.scrollWidth > formula.clientWidth + 1;
  const [number, body] = [".eqno", ".katex-display"].map(x => formula.querySelector(x));
  const under = number && number.getClientRects().length &&
    body.getBoundingClientRect().right > number.getBoundingClientRect().left + 1;
  return [cut ? [`cut off: ${text}`] : [], under ? [`under its number: ${text}`] : []].flat();
})
"""
_STILL = "*, ::before, ::after { transition: none !important; animation: none !important; }"
_UNFOLD = f"""
async () => {{
  document.querySelectorAll("details").forEach(x => {{ x.open = true; }});
  document.querySelectorAll("button.toggle-button-hidden").forEach(x => x.click());
  {_FRAMES}
}}
"""
# Tokens of one kind in one block of code look alike: axe needs one, and takes a millisecond for each.
_THIN = """
() => document.querySelectorAll("pre, dt.sig").forEach(block => {
  const seen = new Set();
  block.querySelectorAll("span[class]").forEach(token => {
    let kind = token.className;
    for (let x = token.parentElement; x !== block; x = x.parentElement) kind += x.localName + x.className;
    if (seen.has(kind)) token.replaceWith(...token.childNodes);
    seen.add(kind);
  });
})
"""
# Without preload: axe would fetch the styles, which file:// refuses, for one rule that is off by default.
# KaTeX's drawing is hidden from readers of the MathML beside it, so no rule looks there.
_AXE = """
async rules => {
  const options = { resultTypes: ["violations"], preload: false, ...rules };
  const { violations } = await axe.run({ exclude: [".katex-html"] }, options);
  return violations.flatMap(rule => rule.nodes.map(node => [rule.id, node.html, node.failureSummary]));
}
"""
_FOLLOWED = "scheme => document.documentElement.dataset.theme === scheme"
_FONTS = '() => [...document.fonts].filter(x => x.status === "error").map(x => x.family)'


@dataclass
class Tab:
    """An offline window and what was noticed while it was used."""

    context: BrowserContext
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(self, path: Path) -> Page:
        """Open a page in place of the last one, forgetting what was noticed there.

        Args:
            path: an HTML file; a query or a fragment may follow its name.

        Returns:
            The page, after its ``load`` event.
        """
        for page in self.context.pages:
            page.close()
        self.requests.clear()
        self.complaints.clear()
        page = self.context.new_page()
        page.goto(f"file://{path}")
        # So that no check falls into the middle of a transition.
        page.add_style_tag(content=_STILL)
        return page


def find_chromium() -> str | None:
    """Find an installed Chromium.

    Returns:
        Its path, or ``None`` where there is none.
    """
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def pages(folder: Path = HTML) -> list[Path]:
    """List the pages of the built site.

    Args:
        folder: where the site was rendered to.

    Returns:
        The ``.html`` files, sorted; empty where nothing was built.
    """
    return sorted(folder.rglob("*.html"))


def leaves(address: str) -> bool:
    """Tell whether a request would leave the site.

    Args:
        address: what the page asks for.

    Returns:
        ``True`` unless it is a file or held in the page itself.
    """
    return urlsplit(address).scheme not in HERE


@contextmanager
def chromium(executable: str) -> Iterator[Browser]:
    """Run one headless Chromium.

    Args:
        executable: its path.

    Yields:
        The browser.
    """
    with sync_playwright() as driver:
        # Containers run as root, where Chromium's own sandbox does not start.
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def offline(browser: Browser, scheme: str, width: int = 1280) -> Iterator[Tab]:
    """Open a window without network, in which nothing is stored yet.

    Args:
        browser: a running Chromium.
        scheme: the reader's preference, ``"light"`` or ``"dark"``.
        width: of the window, in CSS pixels.

    Yields:
        The window.
    """
    size = {"width": width, "height": 900}
    context = browser.new_context(color_scheme=scheme, viewport=size)
    tab = Tab(context)
    context.set_offline(True)
    context.route(re.compile(r"^(?!file:|data:)"), lambda route: route.abort())
    context.on("request", lambda r: tab.requests.append(r.url) if leaves(r.url) else None)
    context.on("requestfailed", lambda r: tab.complaints.append(f"cannot load {r.url}"))
    context.on("console", lambda m: m.type == "error" and tab.complaints.append(m.text))
    context.on("weberror", lambda e: tab.complaints.append(str(e.error)))
    try:
        yield tab
    finally:
        context.close()


def unrendered(page: Page) -> list[str]:
    """Find TeX and MyST that reached the reader, and formulas that KaTeX could not read.

    Args:
        page: an open page.

    Returns:
        The texts in which they stand.
    """
    texts = page.evaluate(_TEXTS)
    faults = [f"raw {mark}: {text.strip()[:80]}" for text in texts for mark in RAW if mark in text]
    broken = page.eval_on_selector_all(".katex-error", _BROKEN_FORMULAS)
    return faults + [f"KaTeX cannot read: {text[:80]}" for text in broken]


def turn(page: Page, scheme: str) -> None:
    """Let the reader change the preference for light or dark while the page is open.

    Args:
        page: an open page.
        scheme: ``"light"`` or ``"dark"``.

    Raises:
        TimeoutError: of Playwright, where the page does not follow within ten seconds.
    """
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function(_FOLLOWED, arg=scheme, timeout=10_000)


def fonts_missing(page: Page) -> list[str]:
    """Find fonts that were asked for and did not come.

    Args:
        page: an open page.

    Returns:
        Their families.
    """
    return page.evaluate(_FONTS)


def too_wide(page: Page, width: int) -> list[str]:
    """Tell whether the page scrolls sideways.

    Args:
        page: an open page, whose window is resized.
        width: of the window, in CSS pixels.

    Returns:
        One fault naming the first elements that stick out, or none.
    """
    page.set_viewport_size({"width": width, "height": 900})
    wide, window = page.evaluate(_WIDTH)
    if wide <= window:
        return []
    return [f"{wide} px wide in a window of {window}: {', '.join(page.evaluate(_STICKING_OUT))}"]


def hidden_formulas(page: Page) -> list[str]:
    """Find formulas of which a reader cannot see all, not even by scrolling.

    Args:
        page: an open page.

    Returns:
        The beginnings of their TeX.
    """
    return page.evaluate(_HIDDEN_FORMULAS)


def violations(page: Page, axe: str, rules: dict = EVERY_RULE) -> list[str]:
    """Hold axe's rules over the page, with all that is folded unfolded.

    Args:
        page: an open page; repeated tokens of its code lose their colour.
        axe: the text of ``axe.min.js``.
        rules: which rules, as options of ``axe.run``.

    Returns:
        The violations: rule, element, and what is wrong with it.
    """
    page.evaluate(_UNFOLD)
    page.evaluate(_THIN)
    page.evaluate(axe)
    found = page.evaluate(_AXE, rules)
    return [f"{rule}: {html[:160]}: {' '.join(why.split())}" for rule, html, why in found]
