"use strict";
(() => {
  const PAGE = 100;
  const $ = (id) => document.getElementById(id);
  const read = (id) => JSON.parse($(id).textContent);
  const whole = new Intl.NumberFormat("en");
  const order = new Intl.Collator("en", { numeric: true });
  const table = read("table");
  const pictures = read("pictures");
  const rows = table.rows.map(([id, subject, session, site, sequence, status, reason, expected, remedy, seconds, flags, outside, qc, before, after], rank) => {
    const [embeddedBefore, embeddedAfter] = pictures[rank] ?? [];
    const look = (status === "done" || status === "skipped") ? Math.max(flags.length, outside.length) : 0;
    const problem = [reason, expected === null ? null : `Expected: ${expected}`, remedy].filter((part) => part !== null);
    const text = [id, subject, session, site, sequence, status, ...problem, ...flags].join("\n").toLowerCase();
    return { rank, id, subject, session, site, sequence, status, problem, seconds, flags, outside, qc, look, text,
      before: embeddedBefore ?? before, after: embeddedAfter ?? after };
  });

  const columns = [
    { label: "#", value: (row) => row.rank, text: "Worst first" },
    { label: "Picture" },
    { label: "Image", value: (row) => row.id },
    { label: "Site", value: (row) => row.site },
    { label: "Sequence", value: (row) => row.sequence },
    { label: "Status", value: (row) => row.status },
    { label: "To look at", value: (row) => row.look, text: "Number of reasons to look at the image", number: true },
    ...table.measures.map(([label, text], i) => ({ label, text, value: (row) => row.qc[i], number: true })),
    { label: "Seconds", value: (row) => row.seconds, text: "Time taken", number: true },
  ];
  let sorted = { column: 0, down: false };
  let shown = rows;
  let page = 0;
  let opened = 0;

  function element(name, properties = {}, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  /** A format with three digits for the column's largest value, and the same number of decimals for the others. */
  function formatOf(column) {
    const largest = rows.reduce((most, row) => Math.max(most, Math.abs(row.qc[column] ?? 0)), 0);
    const digits = Math.min(Math.max(3 - Math.ceil(Math.log10(largest || 1)), 0), 8);
    return new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  }
  const formats = table.measures.map((_, i) => formatOf(i));

  function shortened(value, column) {
    return value === null ? "–" : formats[column].format(value);
  }

  function compared(a, b) {
    return typeof a === "number" ? a - b : order.compare(a, b);
  }

  function arrange() {
    const { value } = columns[sorted.column];
    const sign = sorted.down ? -1 : 1;
    shown.sort((one, other) => {
      const a = value(one), b = value(other);
      if (a === null || b === null) return (a === null) - (b === null) || one.rank - other.rank;
      return sign * compared(a, b) || one.rank - other.rank;
    });
    page = 0;
    draw();
  }

  function choose() {
    const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [status, site, sequence] = ["status", "site", "sequence"].map((id) => $(id).value);
    const chosen = site === "" ? undefined : table.sites[site];
    shown = rows.filter((row) =>
      words.every((word) => row.text.includes(word)) && (!status || row.status === status) &&
      (chosen === undefined || row.site === chosen) && (!sequence || row.sequence === sequence) &&
      (!$("flagged").checked || row.look > 0));
    arrange();
  }

  function picture(source) {
    const image = element("img", { className: "thumb", alt: "", loading: "lazy", decoding: "async" });
    image.addEventListener("error", () => image.replaceWith("not found"));
    image.src = source;
    return image;
  }

  function line(row, position) {
    const open = element("button", { type: "button", className: "open", textContent: row.id });
    const why = row.problem[0] ?? row.flags.join(" ");
    const source = row.after ?? row.before;
    const thumbnail = source === null ? "–" : $("thumbnails").checked ? picture(source) : "";
    const cells = [
      element("td", { textContent: row.rank + 1, className: "none" }),
      element("td", {}, thumbnail),
      element("td", {}, open, element("span", { className: "why", textContent: why, title: why })),
      element("td", { textContent: row.site ?? table.no_site }),
      element("td", { textContent: row.sequence }),
      element("td", {}, element("span", { className: `status ${row.status}`, textContent: row.status })),
      element("td", { className: row.look ? "number" : "number none", textContent: row.look || "–" }),
      ...row.qc.map((value, i) => element("td", { className: row.outside.includes(i) ? "number outside" : "number" },
        element("span", { textContent: shortened(value, i) }))),
      element("td", { className: "number", textContent: row.seconds === null ? "–" : row.seconds.toFixed(1) }),
    ];
    const made = element("tr", {}, ...cells);
    made.addEventListener("click", () => {
      const marked = getSelection();
      if (marked.isCollapsed || !marked.containsNode(made, true)) show(position);
    });
    return made;
  }

  function draw() {
    const first = page * PAGE, last = Math.min(first + PAGE, shown.length);
    $("rows").replaceChildren(...shown.slice(first, last).map((row, i) => line(row, first + i)));
    const part = shown.length ? `${whole.format(first + 1)} to ${whole.format(last)} of ` : "";
    const all = shown.length < rows.length ? ` (${whole.format(rows.length)} in all)` : "";
    $("shown").textContent = `${part}${whole.format(shown.length)} image${shown.length === 1 ? "" : "s"}${all}`;
    document.querySelectorAll(".previous").forEach((button) => { button.disabled = page === 0; });
    document.querySelectorAll(".next").forEach((button) => { button.disabled = last >= shown.length; });
    [...$("heads").children].forEach((head, i) => {
      if (columns[i].value) head.ariaSort = i !== sorted.column ? "none" : sorted.down ? "descending" : "ascending";
    });
  }

  function head(column, i) {
    const made = element("th", { scope: "col", className: column.number ? "number" : "", title: column.text ?? "" });
    if (!column.value) return element("th", { scope: "col", textContent: column.label });
    const button = element("button", { type: "button", textContent: column.label });
    button.addEventListener("click", () => {
      sorted = { column: i, down: sorted.column === i && !sorted.down };
      arrange();
    });
    made.append(button);
    return made;
  }

  function divide() {
    const at = $("slider").value;
    $("over").style.clipPath = `inset(0 0 0 ${at}%)`;
    $("divide").style.left = `${at}%`;
    $("slider").ariaValueText = `${Math.round(at)} % before`;
  }

  function show(position) {
    const row = shown[opened = position];
    $("which").textContent = row.id;
    const session = row.session === null ? [] : [`session ${row.session}`];
    $("what").textContent = [`subject ${row.subject}`, ...session, row.site ?? table.no_site, row.sequence, row.status].join(" · ");
    $("why").replaceChildren(...[...row.problem, ...row.flags].map((text) => element("li", { textContent: text })));
    $("figures").replaceChildren(...table.measures.map(([label, text], i) => element("div", { title: text },
      element("dt", { textContent: label }),
      element("dd", { className: row.outside.includes(i) ? "outside" : "" }, element("span", { textContent: shortened(row.qc[i], i) })))));
    load(row);
    $("back").disabled = position === 0;
    $("forth").disabled = position === shown.length - 1;
    if (!$("compare").open) $("compare").showModal();
    if (row.before !== null && row.after !== null) $("slider").focus({ focusVisible: false });
  }

  function load(row) {
    const both = row.before !== null && row.after !== null;
    $("under").src = row.before ?? row.after ?? "data:,";
    $("under").alt = row.before === null ? "after harmonization" : "before harmonization";
    if (both) $("over").src = row.after; else $("over").removeAttribute("src");
    $("stage").hidden = row.before === null && row.after === null;
    $("over").hidden = $("slider").hidden = $("divide").hidden = !both;
    document.querySelector(".tag.left").hidden = row.before === null;
    document.querySelector(".tag.right").hidden = row.after === null;
    $("absent").textContent = both ? "" : row.before !== null ? "There is no picture after harmonization."
      : row.after !== null ? "There is no picture before harmonization." : "There are no pictures of this image.";
    $("slider").value = 50;
    divide();
  }

  function options(id, labels, value) {
    $(id).append(...labels.map((label, i) => element("option", { value: value(label, i), textContent: label ?? table.no_site })));
  }

  options("status", table.statuses, (label) => label);
  options("site", table.sites, (_, i) => i);
  options("sequence", table.sequences, (label) => label);
  $("heads").append(...columns.map(head));
  for (const image of [$("under"), $("over")]) {
    image.addEventListener("error", () => { if (!$("stage").hidden) $("absent").textContent = "A picture file next to this page is missing."; });
  }
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("input", choose);
  $("clear").addEventListener("click", () => { $("filters").reset(); choose(); });
  const turn = (by) => () => { page += by; draw(); $("shown").scrollIntoView({ block: "nearest" }); };
  document.querySelectorAll(".previous").forEach((button) => button.addEventListener("click", turn(-1)));
  document.querySelectorAll(".next").forEach((button) => button.addEventListener("click", turn(1)));
  $("slider").addEventListener("input", divide);
  $("back").addEventListener("click", () => show(opened - 1));
  $("forth").addEventListener("click", () => show(opened + 1));
  $("close").addEventListener("click", () => $("compare").close());
  $("browse").hidden = false;
  $("scriptless").hidden = true;
  choose();
})();
