// Small repairs of the theme, for those who read by keyboard or screen reader.

// What scrolls sideways must be reachable by keyboard. The theme looks once, so it misses what is unfolded later.
document.addEventListener("DOMContentLoaded", () => {
  const reachable = ({ target }) => {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  };
  const watch = new ResizeObserver(entries => entries.forEach(reachable));
  const scrolling = "pre, .katex-display, .pst-scrollable-table-container, .cell_output > .output, .cell_output figure";
  document.querySelectorAll(scrolling).forEach(x => watch.observe(x));

  // A formula in a line that is wider than its line scrolls by itself.
  const fit = ({ target }) => {
    target.querySelectorAll("span.math").forEach(formula => {
      formula.classList.remove("wide");
      formula.removeAttribute("tabindex");
      if (formula.getBoundingClientRect().right <= target.getBoundingClientRect().right + 1) return;
      formula.classList.add("wide");
      formula.tabIndex = 0;
    });
  };
  const lines = new ResizeObserver(entries => entries.forEach(fit));
  const blocks = [...document.querySelectorAll("span.math")].map(x => x.closest("p, li, td, th, dd, dt"));
  new Set(blocks.filter(Boolean)).forEach(x => lines.observe(x));
});
