// What scrolls can be reached with the keyboard, and the buttons of two code blocks have different names. An empty cell is no head.
document$.subscribe(() => {
  for (const part of document.querySelectorAll("pre > code, .md-typeset__scrollwrap, .highlight-ipynb, .jp-OutputArea-output")) {
    part.tabIndex = 0;
  }
  for (const head of document.querySelectorAll("th")) {
    if (!head.textContent.trim()) head.replaceWith(document.createElement("td")); // of a table of pandas
  }
  document.querySelectorAll(".md-code__nav").forEach((nav, number) => nav.setAttribute("aria-label", `Code ${number + 1}`));
});
