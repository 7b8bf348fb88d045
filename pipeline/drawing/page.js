// Tables sorted by a column, and the choices above the curves. The page holds all data; nothing is fetched.
"use strict";
function numberIn(cell) {
  const found = cell.dataset.value;
  return found === undefined || found === "" ? null : Number(found);
}
function sortBy(button) {
  const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
  const column = head.cellIndex, down = head.getAttribute("aria-sort") !== "descending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...body.rows];
  rows.sort((one, two) => {
    const a = numberIn(one.cells[column]), b = numberIn(two.cells[column]);
    if (a === null && b === null) {
      const order = one.cells[column].textContent.localeCompare(two.cells[column].textContent);
      return down ? -order : order;
    }
    if (a === null || b === null) return a === null ? 1 : -1;
    return down ? b - a : a - b;
  });
  body.append(...rows);
}
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => sortBy(button));
function figures() {
  return Bokeh.documents.flatMap((one) => one.roots());
}
function drawOver(axis) {
  for (const figure of figures()) {
    for (const renderer of figure.renderers) renderer.glyph.x = { field: axis };
    for (const mark of figure.center) if (mark.type === "Span") mark.visible = axis === figure.tags[0]; // of events
    figure.below[0].axis_label = axis;
  }
}
function show(name, visible) {
  for (const figure of figures())
    for (const renderer of figure.renderers) if (renderer.tags[0] === name) renderer.visible = visible;
}
document.querySelector("#axis")?.addEventListener("change", (event) => drawOver(event.target.value));
for (const box of document.querySelectorAll("input[data-group]"))
  box.addEventListener("change", () => show(box.dataset.group, box.checked));
