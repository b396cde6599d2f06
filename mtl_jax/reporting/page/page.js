'use strict';

// #data holds the names of `tasks` by kind, and three lists. `metrics` are those of
// metrics/registry.py that have their place here. `photographs` have their annotated `marks`.
// `runs` have one reading per photograph, or null where they read none. Marks are, by
// task, the SVG path of a segmentation, and [x, y] or null of a localisation. The
// `numbers` of a reading are in the order of `metrics`; its `diagnosis` is 1, 0 or null.
const data = JSON.parse(document.getElementById('data').textContent);

const { segmentation: masks, localisation: points } = data.tasks;

const OUTCOMES = {
  missed: 'missed glaucoma',
  alarm: 'false alarm',
  correct: 'correct diagnosis',
  unknown: 'no diagnosis to compare',
  unread: 'not read by this run',
};
const DIAGNOSES = { 0: 'healthy', 1: 'glaucoma' };
const DIRECTIONS = { ascending: '↑ Ascending', descending: '↓ Descending' };
const NO_NUMBER = '–';

// Pictures are drawn when they are this close to the window.
const DRAWN_AHEAD = '800px';

// Which photographs are shown, in which order

const columnOf = Object.fromEntries(data.metrics.map((metric, i) => [metric.key, i]));

function numberOf(run, index, metric) {
  return run?.readings[index]?.numbers[columnOf[metric]] ?? null;
}

function outcomeOf(run, index) {
  const probability = numberOf(run, index, 'probability');
  const { glaucoma } = data.photographs[index];
  const reading = run?.readings[index];
  if (!reading) return 'unread';
  if (probability === null || glaucoma === null) return 'unknown';
  // A calibrated run has a threshold of its own.
  const diagnosis = reading.diagnosis ?? Number(probability >= 0.5);
  if (glaucoma === 1 && diagnosis === 0) return 'missed';
  if (glaucoma === 0 && diagnosis === 1) return 'alarm';
  return 'correct';
}

function meanDice(run, index) {
  const known = masks
    .map((name) => numberOf(run, index, `dice_${name}`))
    .filter((value) => value !== null);
  if (!known.length) return null;
  return known.reduce((sum, value) => sum + value, 0) / known.length;
}

function ranksById(photographs) {
  const { compare } = new Intl.Collator('en', { numeric: true });
  const order = photographs.map((_, index) => index);
  order.sort((a, b) => compare(photographs[a].id, photographs[b].id) || a - b);
  const ranks = [];
  order.forEach((index, rank) => { ranks[index] = rank; });
  return ranks;
}

const ranks = ranksById(data.photographs);

// Photographs without a number come last in either direction, equal ones by id.
function sortedBy(valueOf, indices, isDescending) {
  const sign = isDescending ? -1 : 1;
  return [...indices].sort((a, b) => {
    const [first, second] = [valueOf(a), valueOf(b)];
    if (first !== null && second !== null && first !== second) {
      return sign * (first - second);
    }
    return (first === null) - (second === null) || ranks[a] - ranks[b];
  });
}

function withOutcome(run, indices, outcome) {
  if (outcome === '') return indices;
  if (outcome !== 'worst') {
    return indices.filter((index) => outcomeOf(run, index) === outcome);
  }
  const known = indices.filter((index) => meanDice(run, index) !== null);
  const count = Math.max(1, Math.floor(known.length / 10));
  return sortedBy((index) => meanDice(run, index), known, false).slice(0, count);
}

function chosenOrder(view) {
  const all = data.photographs.map((_, index) => index);
  const wanted = view.search.toLowerCase();
  const found = withOutcome(view.runs.left, all, view.outcome).filter((index) =>
    data.photographs[index].id.toLowerCase().includes(wanted));
  const [side, metric] = view.sort.split(':');
  const valueOf = metric
    ? (index) => numberOf(view.runs[side], index, metric)
    : (index) => ranks[index];
  return sortedBy(valueOf, found, view.direction === 'descending');
}

// Pieces of the page

function copyOf(template) {
  return document.getElementById(template).content.firstElementChild.cloneNode(true);
}

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function headOf(metric) {
  const arrow = { higher: ' ↑', lower: ' ↓' }[metric.better] ?? '';
  return metric.name + arrow;
}

function makePanel(side) {
  const panel = copyOf('panel-template');
  panel.dataset.side = side;
  const lines = data.metrics.map((metric) => {
    const cell = make('dd');
    Object.assign(cell.dataset, { metric: metric.key, side });
    return make('div', {}, make('dt', { textContent: headOf(metric) }), cell);
  });
  panel.querySelector('.numbers').append(...lines);
  return panel;
}

function tell(panel, run, index) {
  panel.hidden = !run;
  panel.querySelector('.run').textContent = run?.label ?? '';
  const outcome = outcomeOf(run, index);
  const words = panel.querySelector('.outcome');
  words.textContent = OUTCOMES[outcome];
  words.classList.toggle('error', ['missed', 'alarm'].includes(outcome));
  for (const cell of panel.querySelectorAll('dd')) {
    const { metric } = cell.dataset;
    const value = numberOf(run, index, metric);
    const { digits } = data.metrics[columnOf[metric]];
    cell.dataset.value = value ?? '';
    cell.textContent = value === null ? NO_NUMBER : value.toFixed(digits);
  }
}

function cross([x, y], radius) {
  return `M${x - radius} ${y}h${2 * radius}M${x} ${y - radius}v${2 * radius}`;
}

function ring([x, y], radius) {
  const half = `a${radius} ${radius} 0 0 0`;
  return `M${x - radius} ${y}${half} ${2 * radius} 0${half} ${-2 * radius} 0z`;
}

function namesOf(marks) {
  const names = [...masks, ...points].filter((name) => marks?.[name]);
  return names.join(', ') || 'nothing';
}

// SVG paths by the mark's name, which begins with `prefix`.
function pathsOf(marks, prefix, sign) {
  const paths = {};
  for (const name of masks) paths[prefix + name] = marks?.[name];
  for (const name of points) paths[prefix + name] = marks?.[name] && sign(marks[name]);
  return paths;
}

function draw(panel, run, index) {
  const photograph = data.photographs[index];
  const { width, height, marks: truth } = photograph;
  const marks = run.readings[index]?.marks;
  const radius = Math.max(width, height) / 45;
  const paths = {
    ...pathsOf(marks, '', (xy) => cross(xy, radius)),
    ...pathsOf(truth, 'true-', (xy) => ring(xy, 0.7 * radius)),
  };
  const picture = copyOf('picture-template');
  picture.setAttribute('viewBox', `-0.5 -0.5 ${width} ${height}`);
  picture.setAttribute('aria-label', `Photograph ${photograph.id}, ${run.label}. `
    + `Predicted: ${namesOf(marks)}. Annotated: ${namesOf(truth)}.`);
  const image = picture.querySelector('image');
  image.setAttribute('width', width);
  image.setAttribute('height', height);
  image.setAttribute('href', photograph.source);
  for (const path of picture.querySelectorAll('path')) {
    path.setAttribute('d', paths[path.dataset.mark] || '');
  }
  panel.querySelector('.picture').replaceChildren(picture);
}

function diagnosisOf(index) {
  const { glaucoma } = data.photographs[index];
  return `Annotated: ${DIAGNOSES[glaucoma] ?? 'no diagnosis'}`;
}

function makeCard(photograph, index) {
  const element = copyOf('card-template');
  element.dataset.image = photograph.id;
  element.dataset.index = index;
  element.querySelector('.diagnosis').textContent = diagnosisOf(index);
  const button = element.querySelector('.open');
  button.textContent = photograph.id;
  const panels = { left: makePanel('left'), right: makePanel('right') };
  element.querySelector('.panels').append(panels.left, panels.right);
  return { index, element, button, panels, isNear: false, drawn: null };
}

// State

const controls = document.getElementById('controls').elements;
const list = document.getElementById('cards');
const viewer = document.getElementById('viewer');

const cards = data.photographs.map(makeCard);
const viewed = { left: makePanel('left'), right: makePanel('right') };
const defaults = {
  left: data.runs[0].label,
  right: data.runs[1]?.label ?? '',
  outcome: '',
  sort: 'id',
  direction: 'ascending',
  search: '',
  predictions: 'shown',
  annotations: 'shown',
};

// `view` is what the controls say. `order` holds the indices of the photographs shown.
// The photograph shown large is `order[viewedAt]`, and `viewedCard` is its card.
let view = {};
let order = [];
let viewedAt = 0;
let viewedCard = null;

function readAddress() {
  const address = new URLSearchParams(location.hash.slice(1));
  const known = (name, value) => {
    const { options } = controls[name];
    return !options || [...options].some((o) => o.value === value && !o.disabled);
  };
  for (const name of ['left', 'right', 'outcome', 'sort', 'search']) {
    const value = address.get(name) ?? defaults[name];
    controls[name].value = known(name, value) ? value : defaults[name];
  }
  controls.direction.value =
    address.get('direction') in DIRECTIONS ? address.get('direction') : 'ascending';
  for (const name of ['predictions', 'annotations']) {
    controls[name].checked = address.get(name) !== 'hidden';
  }
}

function writeAddress() {
  const address = new URLSearchParams();
  for (const [name, usual] of Object.entries(defaults)) {
    if (view[name] !== usual) address.set(name, view[name]);
  }
  const text = address.toString();
  if (text !== location.hash.slice(1)) {
    history.replaceState(null, '', text ? `#${text}` : location.pathname);
  }
}

function readControls() {
  const visibility = (name) => (controls[name].checked ? 'shown' : 'hidden');
  const run = (side) => data.runs.find((each) => each.label === controls[side].value);
  const [side, metric] = controls.sort.value.split(':');
  // A run that is not shown has nothing to sort by.
  if (side === 'right' && controls.right.value === '') {
    controls.sort.value = `left:${metric}`;
  }
  return {
    ...Object.fromEntries(['left', 'right', 'outcome', 'sort', 'direction', 'search']
      .map((name) => [name, controls[name].value])),
    predictions: visibility('predictions'),
    annotations: visibility('annotations'),
    runs: { left: run('left'), right: run('right') },
  };
}

function drawCard(card) {
  const runs = `${view.left}\n${view.right}`;
  if (card.drawn === runs) return;
  card.drawn = runs;
  for (const [side, panel] of Object.entries(card.panels)) {
    if (view.runs[side]) draw(panel, view.runs[side], card.index);
  }
}

function showRuns() {
  for (const card of cards) {
    for (const [side, panel] of Object.entries(card.panels)) {
      tell(panel, view.runs[side], card.index);
    }
    if (card.isNear) drawCard(card);
  }
}

function showMarks() {
  for (const name of ['predictions', 'annotations']) {
    document.body.classList.toggle(`without-${name}`, view[name] === 'hidden');
    for (const box of document.querySelectorAll(`input[name=${name}]`)) {
      box.checked = view[name] === 'shown';
    }
  }
}

function update() {
  const before = view;
  view = readControls();
  if (before.left !== view.left || before.right !== view.right) showRuns();
  showMarks();
  controls.direction.textContent = DIRECTIONS[view.direction];
  const wanted = chosenOrder(view);
  if (wanted.join() !== order.join() || !before.runs) {
    order = wanted;
    list.replaceChildren(...order.map((index) => cards[index].element));
  }
  const text = `${order.length} of ${cards.length} images`;
  document.getElementById('count').textContent = text;
  writeAddress();
}

// One image, large

function showLarge(wanted) {
  if (wanted < 0 || wanted >= order.length) return;
  viewedAt = wanted;
  const index = order[viewedAt];
  viewedCard = cards[index];
  document.getElementById('viewed').textContent = data.photographs[index].id;
  viewer.querySelector('.diagnosis').textContent = diagnosisOf(index);
  const text = `(${viewedAt + 1} of ${order.length})`;
  viewer.querySelector('.position').textContent = text;
  for (const [side, panel] of Object.entries(viewed)) {
    tell(panel, view.runs[side], index);
    if (view.runs[side]) draw(panel, view.runs[side], index);
  }
  // A button that is disabled in full would lose the focus.
  const atEnd = { previous: viewedAt === 0, next: viewedAt === order.length - 1 };
  for (const [id, isOver] of Object.entries(atEnd)) {
    document.getElementById(id).setAttribute('aria-disabled', isOver);
  }
}

function openViewer(index) {
  showLarge(order.indexOf(index));
  viewer.showModal();
}

const KEYS = { ArrowLeft: -1, k: -1, ArrowRight: 1, j: 1 };

function onViewerKey(event) {
  const step = KEYS[event.key];
  if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  showLarge(viewedAt + step);
}

function onCardClick(event) {
  const element = event.target.closest('.card');
  // The mouse also selects text. A click by the keyboard has no detail.
  const isSelecting = event.detail > 0 && !getSelection().isCollapsed;
  if (element && !isSelecting) openViewer(Number(element.dataset.index));
}

// The page is put together

function fillControls() {
  for (const side of ['left', 'right']) {
    for (const { label } of data.runs) controls[side].append(new Option(label, label));
    const group = make('optgroup', { label: `${side} run` });
    for (const metric of data.metrics) {
      const text = `${headOf(metric)}, ${side}`;
      group.append(new Option(text, `${side}:${metric.key}`));
    }
    controls.sort.append(group);
  }
  for (const slot of document.querySelectorAll('.legend-slot')) {
    slot.append(copyOf('legend-template'));
  }
  const meanings = data.metrics.map((metric) => make('div', {},
    make('dt', { textContent: headOf(metric) }),
    make('dd', {
      textContent: metric.meaning
        + (metric.better ? ` Better when ${metric.better}.` : ''),
    })));
  document.getElementById('meanings').prepend(...meanings);
  viewer.querySelector('.panels').append(viewed.left, viewed.right);
}

function listen() {
  const form = document.getElementById('controls');
  // Some browsers report a choice as "change" only.
  for (const kind of ['input', 'change']) form.addEventListener(kind, update);
  form.addEventListener('submit', (event) => event.preventDefault());
  controls.direction.addEventListener('click', () => {
    const isAscending = controls.direction.value === 'ascending';
    controls.direction.value = isAscending ? 'descending' : 'ascending';
    update();
  });
  addEventListener('hashchange', () => {
    viewer.close();
    readAddress();
    update();
  });

  list.addEventListener('click', onCardClick);
  viewer.addEventListener('keydown', onViewerKey);
  viewer.addEventListener('input', ({ target }) => {
    controls[target.name].checked = target.checked;
    update();
  });
  // The focus goes to the card of the image that was shown last.
  viewer.addEventListener('close', () => viewedCard.button.focus());
  const actions = {
    previous: () => showLarge(viewedAt - 1),
    next: () => showLarge(viewedAt + 1),
    close: () => viewer.close(),
  };
  for (const [id, action] of Object.entries(actions)) {
    document.getElementById(id).addEventListener('click', action);
  }

  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const card = cards[target.dataset.index];
      card.isNear = isIntersecting;
      if (isIntersecting) drawCard(card);
    }
  }, { rootMargin: DRAWN_AHEAD });
  for (const { element } of cards) observer.observe(element);
  addEventListener('beforeprint', () => order.forEach((i) => drawCard(cards[i])));
}

fillControls();
readAddress();
update();
listen();
