// A click on a column's name sorts by it: numbers from the highest, text from A; another click turns the order round.
for (const button of document.querySelectorAll("th button")) {
  button.onclick = () => {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const numeric = head.classList.contains("number");
    const down = head.ariaSort ? head.ariaSort === "ascending" : numeric;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.ariaSort = down ? "descending" : "ascending";
    const value = row => numeric ? row.cells[head.cellIndex].dataset.key : row.cells[head.cellIndex].textContent.trim();
    const order = (a, b) => numeric ? a - b : a.localeCompare(b, undefined, { numeric: true });
    const rows = [...body.rows].map(row => [value(row), row]);
    rows.sort(([a], [b]) => (a === "") - (b === "") || (down ? -1 : 1) * order(a, b));
    body.append(...rows.map(([, row]) => row));
  };
}
