'use strict';
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const node = (tag, text = '', attributes = {}) => {
  const made = Object.assign(document.createElement(tag), { textContent: text });
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  return made;
};

// --- tabs, sorting -----------------------------------------------------------------------------------------------------

const tabs = $$('[role=tab]');
const choose = tab => {
  tabs.forEach(other => { other.setAttribute('aria-selected', other === tab); other.tabIndex = other === tab ? 0 : -1; });
  $$('main > section').forEach(section => { section.hidden = section.id !== tab.dataset.view; });
  if (tab.dataset.view === $('#answers')?.closest('section').id) showAnswers();
};
tabs.forEach((tab, i) => {
  tab.onclick = () => { choose(tab); history.replaceState(null, '', `#${tab.dataset.view}`); };
  tab.onkeydown = event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) { const next = tabs[(i + step + tabs.length) % tabs.length]; next.focus(); choose(next); }
  };
});

const shown = cell => cell ? (cell.dataset.sort ?? cell.textContent).trim() : '';
const number = text => parseFloat(text.replace('+', ''));
$$('table.grid').forEach(table => {
  const heads = [...[...table.tHead.rows].pop().cells], body = table.tBodies[0], original = [...body.rows];
  heads.forEach((head, at) => { const button = $('button', head); if (button) button.onclick = () => {
    const next = { '': 'down', down: 'up', up: '' }[head.dataset.way ?? ''];
    heads.forEach(h => { delete h.dataset.way; h.removeAttribute('aria-sort'); const b = $('button', h); if (b) b.dataset.way = ''; });
    head.dataset.way = next;
    if (next) head.setAttribute('aria-sort', next === 'up' ? 'ascending' : 'descending');
    button.dataset.way = { down: ' \u25be', up: ' \u25b4', '': '' }[next];
    const sign = next === 'up' ? 1 : -1, order = (a, b) => {
      const [x, y] = [shown(a.cells[at]), shown(b.cells[at])], [m, n] = [number(x), number(y)];
      if (isNaN(m) || isNaN(n)) return isNaN(m) && isNaN(n) ? -sign * x.localeCompare(y) : isNaN(m) - isNaN(n);
      return sign * (m - n);
    };
    body.append(...(next ? [...original].sort(order) : original));
    table.classList.toggle('sorted', !!next);
  }; });
});
const details = $('#details');
if (details) details.onchange = () => document.body.classList.toggle('details', details.checked);

// --- data: packed parts of this file, or files of the folder answers/ beside it ------------------------------------------

const waiting = {}, unpacked = {};
window.keditPart = (name, text) => waiting[name]?.(text);
const unpack = async text => {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  return JSON.parse(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).text());
};
const part = name => unpacked[name] ??= new Promise((done, failed) => {
  const inside = document.getElementById(`part-${name}`);
  if (inside) return done(inside.textContent);
  waiting[name] = done;
  document.head.append(Object.assign(node('script'), { src: `answers/${name}.js`, onerror: () => failed(new Error(
    `answers/${name}.js is not there: the folder answers/ belongs beside this page`)) }));
}).then(unpack);

// --- a cell's config and provenance --------------------------------------------------------------------------------------

const dialog = $('#cell');
const pairs = entries => {
  const list = node('dl');
  entries.forEach(([name, value]) => list.append(node('dt', name), node('dd', value)));
  return list;
};
const link = directory => directory.split('/').map(encodeURIComponent).join('/');
const showCell = (found, at) => {
  const cell = found[at], head = node('h2', `${cell.title}`, { id: 'cell-title' }), close = node('button', 'Close');
  close.onclick = () => dialog.close();
  const bar = node('div', '', { class: 'tools' });
  if (found.length > 1) {
    const label = node('label', `one of ${found.length} cells`), select = node('select');
    found.forEach((one, i) => select.append(new Option(one.title, i, false, i === at)));
    select.onchange = () => showCell(found, +select.value);
    label.append(select); bar.append(label);
  }
  bar.append(close);
  const files = node('p', 'Files: ');
  cell.files.forEach(name => files.append(node('a', name, { href: `${link(cell.directory)}/${encodeURIComponent(name)}` }), ' '));
  const parts = [bar, head, pairs(cell.facts), files];
  if (cell.command) parts.push(node('h3', 'Command'), node('pre', cell.command, { class: 'lines', tabindex: 0 }));
  parts.push(node('h3', 'Config, as it was resolved'), node('pre', cell.config, { tabindex: 0 }));
  dialog.replaceChildren(...parts);
  if (!dialog.open) dialog.showModal();
};
document.addEventListener('click', async event => {
  const target = event.target.closest('.grid a[href]');
  if (!target || !dialog || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const place = decodeURIComponent(target.getAttribute('href'));
  const found = (await part('cells')).filter(cell => `${cell.directory}/`.startsWith(place));
  if (found.length) showCell(found, 0); else location.href = target.href;
});

// --- answers, question by question ---------------------------------------------------------------------------------------

const PAGE = 25;
let from = 0, ready = false;
const groups = JSON.parse($('#groups')?.textContent || '[]');
const field = name => $(`#answers [name=${name}]`);
const group = () => groups[+field('group').value];
const fill = (select, options, keep) => {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  if (keep && options.some(([value]) => `${value}` === before)) select.value = before;
};
const newGroup = () => {
  const cells = group().cells.map(({ part, name }) => [part, name]);
  fill(field('one'), cells); fill(field('other'), [['', '(none)'], ...cells]);
  if (cells.length > 1) field('other').value = cells[1][0];
};
const WHICH = {
  all: () => true,
  right: (before, one) => one?.[1] === 1, wrong: (before, one) => one?.[1] === 0,
  fixed: (before, one) => before?.[1] === 0 && one?.[1] === 1, broken: (before, one) => before?.[1] === 1 && one?.[1] === 0,
  differ: (before, one, other) => !!other && !!one && one[0] !== other[0],
};
const answer = said => {
  const cell = node('td', said ? said[0] || '(empty)' : '-', { class: 'text' });
  if (said && said[1] !== null) {
    const mark = node('span', said[1] ? ' \u2713' : ' \u2717', { class: said[1] ? 'right' : 'wrong' });
    mark.append(node('span', said[1] ? ' right' : ' wrong', { class: 'sr' })); cell.append(mark);
  }
  return cell;
};
async function showAnswers() {
  if (!groups.length) return;
  if (!ready) { ready = true; newGroup(); }
  const status = $('#answers-status'), body = $('#answers tbody'), head = $('#answers thead tr');
  try {
    status.textContent = 'Loading';
    const { questions, before } = await part(group().part);
    const one = await part(field('one').value), other = field('other').value ? await part(field('other').value) : null;
    fill(field('kind'), [['', 'all'], ...[...new Set(questions.map(q => q[1]))].map(kind => [kind, kind])], true);
    const text = field('text').value.toLowerCase(), kind = field('kind').value, which = WHICH[field('which').value];
    const found = questions.map((q, i) => i).filter(i => (!kind || questions[i][1] === kind)
      && which(before[i], one[i], other?.[i])
      && (!text || [...questions[i], before[i]?.[0], one[i]?.[0], other?.[i]?.[0]].some(t => `${t ?? ''}`.toLowerCase().includes(text))));
    from = Math.max(0, Math.min(from, Math.floor((found.length - 1) / PAGE) * PAGE));
    const titles = ['case', 'kind', 'question', 'wanted', 'unedited', field('one').selectedOptions[0].text];
    if (other) titles.push(field('other').selectedOptions[0].text);
    head.replaceChildren(...titles.map(title => node('th', title, { class: 'stub', scope: 'col' })));
    body.replaceChildren(...found.slice(from, from + PAGE).map(i => {
      const line = node('tr');
      line.append(node('th', questions[i][0]), node('td', questions[i][1] + (questions[i][2] ? `: ${questions[i][2]}` : ''), { class: 'text' }),
        node('td', questions[i][3], { class: 'text' }), node('td', questions[i][4] ?? '', { class: 'text' }),
        answer(before[i]), answer(one[i]), ...(other ? [answer(other[i])] : []));
      return line;
    }));
    status.textContent = found.length ? `${from + 1} to ${Math.min(from + PAGE, found.length)} of ${found.length} questions` : 'no question is like that';
    $('#answers-back').disabled = from === 0; $('#answers-on').disabled = from + PAGE >= found.length;
  } catch (error) { status.textContent = `${error.message}`; }
}
if ($('#answers')) {
  $('#answers form').addEventListener('input', event => { from = 0; if (event.target.name === 'group') newGroup(); showAnswers(); });
  $('#answers form').onsubmit = event => event.preventDefault();
  $('#answers-back').onclick = () => { from -= PAGE; showAnswers(); };
  $('#answers-on').onclick = () => { from += PAGE; showAnswers(); };
}
const first = tabs.find(tab => `#${tab.dataset.view}` === location.hash);
if (first) choose(first);
