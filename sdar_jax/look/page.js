// Draws the episodes of runs. Whatever a model, a world or a file said is text here:
// nothing is ever parsed as HTML.
'use strict';

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const $ = (id) => document.getElementById(id);
const data = read('data');
const episodes = data.episodes.map((row, id) => {
  const episode = {id};
  data.fields.forEach((name, i) => { episode[name] = row[i]; });
  return episode;
});
const PAGE = 300;  // Rows of the list that are drawn at once.
const WARM = 3;  // Nats, of a gap whose colour is full.
const state = {id: data.start, by: null, beside: null, matrix: false, shown: PAGE};

// How a quantity becomes a colour: one hue by size, or two around a middle.
const SCALES = {
  gate: {two: true, at: (v) => 2 * v - 1, ends: ['0, shut', '1, open']},
  gap: {two: true, at: (v) => v / WARM, ends: [`−${WARM} nats`, `+${WARM}`]},
  advantages: {two: true, at: (v, most) => v / (most || 1), ends: (m) => [`−${short(m)}`, `+${short(m)}`]},
  old_logprobs: {at: (v) => -v / 5, ends: ['0', '−5 nats']},
  teacher_logprobs: {at: (v) => -v / 5, ends: ['0', '−5 nats']},
  contrast_logprobs: {at: (v) => -v / 5, ends: ['0', '−5 nats']},
  ref_logprobs: {at: (v) => -v / 5, ends: ['0', '−5 nats']},
  sampler_logprobs: {at: (v) => -v / 5, ends: ['0', '−5 nats']},
  old_entropy: {at: (v) => v / 2.5, ends: ['0', '2.5 nats']},
  old_values: {two: true, at: (v, most) => v / (most || 1), ends: (m) => [`−${short(m)}`, `+${short(m)}`]},
  action_mask: {mask: true, at: (v) => 0.5 * v, ends: ['out', 'in the mask']},
};
const MEANS = {gate: 'gate', gap: 'gap', advantages: 'advantage'};
const SHORT = {old_logprobs: 'log-prob', teacher_logprobs: 'teacher’s', contrast_logprobs: 'contrast', ref_logprobs: 'initial', sampler_logprobs: 'sampler’s'};
const LABELS = Object.fromEntries(data.columns.map(([key, label]) => [key, label]));

function el(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props || {})) {
    if (name === 'on') for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else if (name === 'class') node.className = value;
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child != null && child !== false));
  return node;
}

const short = (v) => (v == null ? '–' : Number(v).toLocaleString('en', {maximumSignificantDigits: 3}));
const signed = (v) => (v == null ? '–' : (v < 0 ? '−' : '+') + short(Math.abs(v)));
const words = (text) => text.replaceAll('_', ' ');
const number = (v) => (v == null ? null : Number(v));
const dot = (e) => el('span', {class: 'dot' + (e.outcome === 'success' ? ' good' : ''), title: words(e.outcome)});

const loaded = new Map();
function detail(id) {
  if (!loaded.has(id)) loaded.set(id, $(`e${id}`) ? read(`e${id}`) : null);
  return loaded.get(id);
}

// ---- Colours ----

function paint(node, by, value, most) {
  const scale = SCALES[by];
  const at = value == null || !scale ? 0 : Math.max(-1, Math.min(1, scale.at(value, most)));
  node.classList.remove('plus', 'minus', 'one', 'out');
  node.classList.add(scale && (scale.two || scale.mask) ? (at < 0 ? 'minus' : 'plus') : 'one');
  if (scale && scale.mask && !value) node.classList.add('out');
  node.style.setProperty('--a', (0.62 * Math.abs(at)).toFixed(3));
}

function available() {
  const found = new Set();
  for (const id of [state.id, state.beside]) {
    const all = id == null ? null : detail(id);
    for (const turn of all ? all.turns : []) if (turn.tokens) Object.keys(turn.tokens.columns).forEach((k) => found.add(k));
  }
  return data.columns.map(([key]) => key).filter((key) => found.has(key));
}

function most(by) {
  let size = 0;
  for (const id of [state.id, state.beside]) {
    const all = id == null ? null : detail(id);
    for (const turn of all ? all.turns : []) {
      for (const v of (turn.tokens && turn.tokens.columns[by]) || []) if (v != null) size = Math.max(size, Math.abs(number(v)));
    }
  }
  return size;
}

function drawShades() {
  const choices = available();
  if (!choices.includes(state.by)) state.by = choices[0] || null;
  $('shade').replaceChildren(...choices.map((key) => el('button', {
    type: 'button', role: 'radio', 'aria-checked': String(key === state.by), 'data-by': key,
    title: LABELS[key], on: {click: () => { state.by = key; draw(false); }},
  }, SHORT[key] || LABELS[key])));
  const scale = SCALES[state.by];
  if (!scale) { $('legend').replaceChildren('no tokens are recorded of this episode'); return; }
  const [low, high] = typeof scale.ends === 'function' ? scale.ends(most(state.by)) : scale.ends;
  $('legend').replaceChildren(low, el('i', {class: scale.two ? 'two' : 'one'}), high);
}

// ---- The list ----

const ORDERS = {
  'as played': () => 0,
  'best first': (a, b) => (b.score ?? 0) - (a.score ?? 0) || b.return - a.return || a.length - b.length,
  'worst first': (a, b) => (a.outcome === 'success') - (b.outcome === 'success') || (a.score ?? 0) - (b.score ?? 0) || a.return - b.return || b.length - a.length,
  'most turns': (a, b) => b.length - a.length,
  'highest advantage': (a, b) => (b.advantage ?? -1e99) - (a.advantage ?? -1e99),
  'lowest advantage': (a, b) => (a.advantage ?? 1e99) - (b.advantage ?? 1e99),
  'widest gate': (a, b) => (b.gate ?? -1) - (a.gate ?? -1),
  'largest gap': (a, b) => Math.abs(b.gap ?? 0) - Math.abs(a.gap ?? 0),
  'most tokens recorded': (a, b) => b.recorded - a.recorded,
};
const FILTERS = {run: 'all runs', kind: 'train and eval', step: 'all steps', type: 'all types', outcome: 'all outcomes'};

function prepareFilters() {
  for (const [name, every] of Object.entries(FILTERS)) {
    const values = [...new Set(episodes.map((e) => e[name]))].sort((a, b) => (a > b) - (a < b));
    const label = (v) => (name === 'run' ? data.runs[v].name : name === 'step' ? `step ${v}` : words(String(v)));
    $(name).append(el('option', {value: ''}, every), ...values.map((v) => el('option', {value: v}, label(v))));
    $(name).hidden = values.length < 2;
    $(name).addEventListener('change', restart);
  }
  $('sort').append(...Object.keys(ORDERS).map((name) => el('option', {value: name}, `sort: ${name}`)));
  $('sort').addEventListener('change', restart);
  $('find').addEventListener('input', restart);
  $('more').addEventListener('click', () => { state.shown += PAGE; drawList(); });
}

function restart() { state.shown = PAGE; drawList(); }

function chosen() {
  const find = $('find').value.toLowerCase();
  const kept = episodes.filter((e) =>
    Object.keys(FILTERS).every((name) => $(name).value === '' || String(e[name]) === $(name).value) &&
    (!find || `${e.task} ${e.goal}`.toLowerCase().includes(find)));
  const order = ORDERS[$('sort').value];
  return $('sort').value === 'as played' ? kept : kept.sort((a, b) => order(a, b) || a.id - b.id);
}

function drawList() {
  const all = chosen();
  $('count').textContent = `${all.length.toLocaleString('en')} of ${episodes.length.toLocaleString('en')}`;
  $('more').hidden = all.length <= state.shown;
  $('list').replaceChildren(...all.slice(0, state.shown).map((e) => el('li', null, el('button', {
    type: 'button', 'data-id': e.id, 'aria-current': String(e.id === state.id), title: e.task,
    on: {click: () => go(e.id)},
  },
  dot(e), el('span', {class: e.goal ? 'name' : 'name id'}, el('bdi', null, e.goal || e.task)),
  el('span', {class: 'sum'}, short(e.score ?? e.return)),
  el('span', {class: 'where'}, `${e.kind === 'eval' ? 'eval, ' : ''}step ${e.step}, group ${e.group}, member ${e.member}`),
  el('span', {class: 'sum'}, e.recorded ? `${e.length} turns ●` : `${e.length} turns`)))));
}

// ---- An episode ----

const group = (e) => episodes.filter((o) => o.run === e.run && o.kind === e.kind && o.step === e.step && o.group === e.group)
  .sort((a, b) => a.member - b.member);

function facts(e) {
  const fact = (name, value, good) => value != null && el('li', {class: good ? 'good' : ''}, `${name} `, el('b', null, value));
  return el('ul', {class: 'facts'},
    fact('', words(e.outcome), e.outcome === 'success'), fact('return', short(e.return)),
    fact('score', e.score == null ? null : short(e.score)), fact('turns', e.length),
    fact('advantage', e.advantage == null ? null : signed(e.advantage)),
    fact('gate', e.gate == null ? null : short(e.gate)), fact('gap', e.gap == null ? null : `${signed(e.gap)} nats`),
    fact(e.kind === 'eval' ? 'evaluated at step' : 'step', e.step), fact('group', e.group), fact('member', e.member),
    fact('type', words(e.type)), data.runs.length > 1 && fact('run', data.runs[e.run].name));
}

function groupStrip(e) {
  const all = group(e);
  if (all.length < 2) return null;
  const widest = Math.max(...all.map((o) => Math.abs(o.advantage ?? 0))) || 1;
  return el('div', {class: 'group', 'aria-label': 'The members of the group'}, all.map((o) => {
    const bar = el('i', {class: o.advantage < 0 ? 'minus' : 'plus'});
    const size = 50 * Math.abs(o.advantage ?? 0) / widest;
    bar.style.width = `${size}%`;
    bar.style.left = `${o.advantage < 0 ? 50 - size : 50}%`;
    return el('button', {type: 'button', 'aria-current': String(o.id === e.id), 'data-id': o.id, on: {click: () => go(o.id)}},
      dot(o), ' ', el('b', null, `member ${o.member}`), el('br'), `return ${short(o.return)}`, el('br'),
      `${o.length} turns`, el('br'), `adv. ${signed(o.advantage)}`, el('span', {class: 'bar'}, o.advantage == null ? null : bar));
  }));
}

function matrix(e) {
  const all = group(e).map((o) => [o, detail(o.id)]);
  const rows = Math.max(...all.map(([o]) => o.length));
  const mean = MEANS[state.by] || 'advantage';
  const lean = (turn) => (turn && turn.means[mean] != null ? (mean === 'gate' ? 2 * turn.means.gate - 1 : number(turn.means[mean])) : 0);
  const widest = Math.max(...all.flatMap(([, d]) => (d ? d.turns.map((t) => Math.abs(lean(t))) : [0])));
  const cell = (d, i) => {
    const turn = d && d.turns[i];
    const title = turn && turn.means[mean] != null ? `${mean} ${turn.means[mean]}` : null;
    const node = el('td', {title}, turn ? turn.action || '(no action)' : '');
    paint(node, 'advantages', lean(turn), widest);  // By size within the group.
    return node;
  };
  return el('div', {class: 'matrix'}, el('table', null,
    el('thead', null, el('tr', null, el('th', null, 'turn'), all.map(([o]) => el('th', null, dot(o), ` member ${o.member}, ${short(o.return)}`)))),
    el('tbody', null, Array.from({length: rows}, (_, i) => el('tr', null, el('th', null, i + 1), all.map(([, d]) => cell(d, i)))))));
}

function prompt(parts, own) {
  const mark = parts[own].trimEnd();
  const box = el('pre', {class: 'prompt', tabindex: 0, on: {dblclick: () => box.classList.toggle('whole')}},
    parts[0], mark ? el('mark', null, mark) : null, parts[own].slice(mark.length), parts[3]);
  return box;
}

function seen(turn) {
  const names = turn.tokens && turn.tokens.teacher;
  const student = el('section', null, el('h4', null, 'the student sees ', turn.skills.length ? el('code', null, turn.skills.join(', ')) : null), prompt(turn.seen, 1));
  if (!turn.taught) return el('div', {class: 'seen'}, student);
  const tips = names.map((name) => data.skills[name]).filter(Boolean).join('\n');
  const head = el('h4', {title: tips}, 'the teacher sees ', el('code', null, names.length ? names.join(', ') : 'nothing more'));
  return el('div', {class: 'seen'}, student, el('section', null, head, prompt(turn.seen, 2)));
}

const visible = (text) => (text === '' ? '◌' : text.replaceAll('\n', '↵\n').replaceAll('\t', '⇥'));

function tokens(turn, widest) {
  const t = turn.tokens;
  if (!t) {
    return el('div', {class: 'said'}, el('h4', null, 'the response'), el('div', {class: 'tokens plain'}, turn.response));
  }
  const values = t.columns[state.by] || [];
  const spans = t.texts.map((text, i) => {
    const node = el('span', {'data-i': i}, visible(text));
    paint(node, state.by, number(values[i]), widest);
    return node;
  });
  const box = el('div', {class: 'tokens'}, spans);
  box.addEventListener('pointerover', (event) => { if (event.target.dataset.i) show(event.target, t); });
  box.addEventListener('pointerleave', hide);
  return el('div', {class: 'said'}, el('h4', null, 'the response, by ', el('span', null, LABELS[state.by] || 'token')), box, strip(values, widest));
}

function strip(values, widest) {
  const scale = SCALES[state.by];
  if (!scale || scale.mask || values.length < 8) return null;
  const svg = (tag, props) => {
    const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [k, v] of Object.entries(props)) node.setAttribute(k, v);
    return node;
  };
  const middle = scale.two ? 17 : 34;
  const width = Math.min(100, 2.5 * values.length);
  const out = svg('svg', {class: 'strip', viewBox: `0 0 ${values.length} 34`, preserveAspectRatio: 'none', 'aria-hidden': 'true'});
  out.style.width = `${width}%`;
  out.append(svg('line', {x1: 0, x2: values.length, y1: middle, y2: middle}));
  values.forEach((raw, i) => {
    if (raw == null) return;
    const at = Math.max(-1, Math.min(1, scale.at(number(raw), widest)));
    const size = Math.abs(at) * (scale.two ? 16 : 33);
    out.append(svg('rect', {x: i + 0.1, width: 0.8, y: at < 0 && scale.two ? middle : middle - size, height: size, class: scale.two ? (at < 0 ? 'minus' : 'plus') : 'one'}));
  });
  return out;
}

function turnCard(turn, i, all, e, widest) {
  const mean = (name, unit) => turn.means[name] != null && el('span', null, `${name} ${name === 'gate' ? short(turn.means[name]) : signed(turn.means[name])}${unit}`);
  const next = all[i + 1];
  return el('section', {class: 'turn', id: `turn-${e.id}-${i + 1}`},
    el('h3', null, `Turn ${i + 1}`, mean('gate', ''), mean('gap', ' nats'), mean('advantage', ''),
      turn.reward ? el('span', null, `reward ${short(turn.reward)}`) : null,
      turn.valid ? null : el('span', {class: 'warn'}, 'malformed'),
      turn.stop === 'length' ? el('span', {class: 'warn'}, 'cut at the limit') : null,
      turn.dropped ? el('span', null, 'oldest turns not shown') : null,
      turn.cut ? el('span', null, 'observation shortened') : null),
    seen(turn), tokens(turn, widest),
    el('dl', {class: 'did'}, el('dt', null, 'action'),
      el('dd', null, turn.action || '(none)', turn.admissible ? null : el('span', {class: 'warn'}, '  does nothing here')),
      el('dt', null, next ? 'the world' : 'the end'), el('dd', null, next ? next.observation : `${words(e.outcome)}, return ${short(e.return)}`)));
}

function article(id, widest, alone) {
  const e = episodes[id], all = detail(id);
  const head = [el('h2', null, e.goal || e.task), e.goal ? el('p', {class: 'note'}, e.task) : null, facts(e)];
  if (!all) {
    const flags = `--step ${e.step} --task ${e.task} --member ${e.member}`;
    return el('article', null, head, el('p', {class: 'note'}, 'This page holds the turns of other episodes only; for these: ',
      el('code', null, `sdar view ${data.runs[e.run].path} ${flags} --html FILE`)));
  }
  return el('article', null, head, alone ? [tools(e), groupStrip(e), state.matrix ? matrix(e) : null] : null,
    all.turns.map((turn, i) => turnCard(turn, i, all.turns, e, widest)),
    all.turns.length ? null : el('p', {class: 'note'}, 'It has no turns.'));
}

function tools(e) {
  const others = episodes.filter((o) => o.task === e.task && o.id !== e.id && $(`e${o.id}`)).slice(0, 200);
  const label = (o) => `${data.runs.length > 1 ? data.runs[o.run].name + ', ' : ''}${o.kind === 'eval' ? 'eval, ' : ''}step ${o.step}, member ${o.member}, ${words(o.outcome)}`;
  const select = el('select', {id: 'beside', 'aria-label': 'Beside', on: {change: (event) => {
    state.beside = event.target.value === '' ? null : Number(event.target.value); draw();
  }}}, el('option', {value: ''}, 'beside: nothing'), others.map((o) => el('option', {value: o.id, selected: o.id === state.beside}, `beside: ${label(o)}`)));
  return el('div', {class: 'tools'}, others.length ? select : null,
    group(e).length > 1 ? el('button', {type: 'button', id: 'matrix', 'aria-pressed': String(state.matrix), on: {click: () => { state.matrix = !state.matrix; draw(false); }}},
      state.matrix ? 'hide the group’s turns' : 'the group’s turns side by side') : null);
}

// ---- Values of a token ----

function show(node, t) {
  const i = Number(node.dataset.i), card = $('card');
  document.querySelectorAll('.tokens .at').forEach((other) => other.classList.remove('at'));
  node.classList.add('at');
  card.replaceChildren(el('code', null, visible(t.texts[i])), ` · token ${t.ids[i]}, ${i + 1} of ${t.texts.length}`,
    el('table', null, data.columns.filter(([key]) => t.columns[key]).map(([key, label]) =>
      el('tr', {class: key === state.by ? 'at' : '', 'data-key': key}, el('th', null, label), el('td', null, String(t.columns[key][i] ?? '–'))))));
  card.hidden = false;
  const at = node.getClientRects()[0] || node.getBoundingClientRect();
  const left = Math.max(8, Math.min(at.left, innerWidth - card.offsetWidth - 8));
  const below = at.bottom + 8 + card.offsetHeight < innerHeight;
  card.style.left = `${left}px`;
  card.style.top = `${below ? at.bottom + 8 : Math.max(8, at.top - card.offsetHeight - 8)}px`;
}

function hide() {
  $('card').hidden = true;
  document.querySelectorAll('.tokens .at').forEach((node) => node.classList.remove('at'));
}

// ---- All together ----

function go(id) {
  state.id = id;
  if (state.beside === id || state.beside == null || episodes[state.beside].task !== episodes[id].task) state.beside = null;
  draw();
  scrollTo(0, 0);
}

function draw(list = true) {
  hide();
  drawShades();
  if (list) drawList();
  const widest = state.by ? most(state.by) : 0;
  const both = state.beside != null;
  const first = episodes[state.id];
  $('main').replaceChildren(...[both ? tools(first) : null, both ? groupStrip(first) : null, both && state.matrix ? matrix(first) : null,
    both ? el('div', {class: 'columns'}, article(state.id, widest, false), article(state.beside, widest, false)) : article(state.id, widest, true)].filter(Boolean));
  remember(`#e=${state.id}${state.by ? `&by=${state.by}` : ''}${both ? `&beside=${state.beside}` : ''}${state.matrix ? '&group' : ''}`);
}

function remember(fragment) {
  try {
    history.replaceState(null, '', fragment);
  } catch {
    // A page inside of another, as in a notebook, has no address.
  }
}

function restore() {
  const said = new URLSearchParams(location.hash.slice(1));
  const id = (name) => { const v = said.get(name); return v != null && /^\d+$/.test(v) && episodes[v] ? Number(v) : null; };
  state.id = id('e') ?? data.start;
  state.beside = id('e') == null ? data.beside : id('beside');
  state.by = said.get('by');
  state.matrix = said.has('group');
}

document.addEventListener('keydown', (event) => {
  if (event.target.closest('input, select') || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = {ArrowRight: 1, j: 1, ArrowLeft: -1, k: -1}[event.key];
  if (step) {
    const all = chosen(), at = all.findIndex((e) => e.id === state.id) + step;
    if (all[at]) go(all[at].id);
  } else if (/^[1-9]$/.test(event.key)) {
    const by = available()[Number(event.key) - 1];
    if (by) { state.by = by; draw(false); }
  } else if (event.key === 'g') { state.matrix = !state.matrix; draw(false); }
});
addEventListener('scroll', hide, {passive: true});
addEventListener('hashchange', () => { restore(); draw(); });
$('runs').append(...data.runs.map((run) => el('span', null, run.name, el('small', null, run.method))));
$('notes').append(...data.runs.flatMap((run) => run.notes).map((note) => el('li', null, note)));
if (innerWidth < 860) $('drawer').open = false;
prepareFilters();
restore();
draw();
document.body.dataset.ready = 'yes';
