"""The repairs of the theme's pages, one by one."""

import pytest

from press import theme

CASES = {
    theme.without_font_preloads: (
        '<link rel="preload" as="font" href="a.woff2" />\n<p>x</p>',
        "<p>x</p>",
    ),
    theme.mode_known_at_once: (
        '<html lang="en"><script data-cfasync="false">old</script>',
        f'<html data-theme="light" lang="en">{theme._CHOOSE_MODE}',
    ),
    theme.landmarks_named: (
        '<nav class="bd-toc-nav page-toc">',
        '<nav class="bd-toc-nav page-toc" aria-label="On this page">',
    ),
    theme.asides_are_notes: (
        '<aside class="margin sidebar">',
        '<aside role="note" class="margin sidebar">',
    ),
    theme.citations_are_items: ('<div role="doc-biblioentry">', '<div role="listitem">'),
    theme.downloads_named: (
        '<a href="x/a.ipynb" class="btn-download-source-button">'
        '<span class="btn__text-container">.md</span>',
        '<a href="x/a.ipynb" class="btn-download-source-button">'
        '<span class="btn__text-container">.ipynb</span>',
    ),
}


@pytest.mark.parametrize("repair", theme.REPAIRS, ids=lambda repair: repair.__name__)
def test_each_repair_mends_its_fault_and_nothing_else(repair):
    before, after = CASES[repair]
    assert repair(before) == after
    assert repair(after) == after
    assert repair("<p>sound</p>") == "<p>sound</p>"


def test_mending_twice_changes_nothing():
    for before, _ in CASES.values():
        once = theme.mend(before)
        assert theme.mend(once) == once
