// Sorts a comparison by a column: on a desktop by its heading, on a phone by a list.
// Without it, the table is as it was made.
for (const table of document.querySelectorAll("table.comparison")) {
  const body = table.tBodies[0], headings = [...table.tHead.rows[0].cells];
  const names = headings.map(heading => heading.textContent);
  // What was not trained stays on top.
  const fixed = [...body.rows].filter(row => row.classList.contains("reference"));
  const made = [...body.rows].filter(row => !fixed.includes(row));
  let sorted = -1, down = false;

  // All numbers of a cell in their order: "3 (6)", "1,060", "61.1%" or "12 min 5 s", in seconds.
  function numbers(text) {
    const times = [...text.matchAll(/([\d.,]+)\s*(h|min|s)\b/g)];
    const plain = part => parseFloat(part.replaceAll(",", ""));
    if (times.length) return [times.reduce((sum, [, n, unit]) => sum + plain(n) * { h: 3600, min: 60, s: 1 }[unit], 0)];
    const sign = /^[-\u2212]/.test(text) ? -1 : 1;
    return (text.match(/\d[\d,]*\.?\d*/g) ?? []).map((part, place) => (place ? 1 : sign) * plain(part));
  }

  function order(one, two, column) {
    const [a, b] = [one, two].map(row => row.cells[column].textContent.trim());
    if (!headings[column].classList.contains("number")) {
      if (!a || !b) return !a - !b;
      return (down ? -1 : 1) * a.localeCompare(b, undefined, { numeric: true });
    }
    const [m, n] = [numbers(a), numbers(b)];
    if (!m.length || !n.length) return !m.length - !n.length; // empty cells come last, either way
    for (let place = 0; place < Math.max(m.length, n.length); place++) {
      const difference = (m[place] ?? -1) - (n[place] ?? -1);
      if (difference) return down ? -difference : difference;
    }
    return 0;
  }

  function sort(column, downward) {
    sorted = column; down = downward;
    const rows = column < 0 ? made : [...made].sort((one, two) => order(one, two, column));
    body.append(...fixed, ...rows);
    headings.forEach((heading, place) => place === column
      ? heading.setAttribute("aria-sort", down ? "descending" : "ascending") : heading.removeAttribute("aria-sort"));
    list.value = column; turn.disabled = column < 0;
  }

  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.textContent = names[column];
    button.title = `Sort by ${names[column]}`;
    button.addEventListener("click", () => sort(column, sorted === column && !down));
    heading.replaceChildren(button);
  });

  const chooser = document.createElement("p"), label = document.createElement("label");
  const list = document.createElement("select"), turn = document.createElement("button");
  chooser.className = "sorter";
  list.add(new Option("the order of the runs", -1));
  names.forEach((name, column) => list.add(new Option(name, column)));
  list.addEventListener("change", () => sort(Number(list.value), false));
  turn.textContent = "Reverse"; turn.disabled = true;
  turn.addEventListener("click", () => sort(sorted, !down));
  label.append("Sort by ", list);
  chooser.append(label, " ", turn);
  table.before(chooser);
}
