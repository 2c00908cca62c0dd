// The load test: 2,000 events/s sustained and a spike of 20,000/s, one event a
// request, in k6's open model, which starts an iteration when it is due whether
// or not earlier ones have been answered.
//
// make load-test runs it against an edge of its own. By hand, against another:
//
//   k6 run -e BASE_URL=http://host:8080 loadtest/script.js
//
// dropped_iterations is how many were due while no VU was free. They have no latency,
// so more of them than p99 leaves out would make it k6's and not the server's: a run
// that drops a thousandth of what is due (DROPPED_SHARE) has failed. It is k6 that
// drops: a request costs it 50 µs of processor time and more, so it needs a machine
// of its own, and a few cores of it, to offer 20,000 a second. SPIKE_RATE sets
// what it can; BULK_RATE is the same number of events in bodies of a hundred.

import http from 'k6/http';
import exec from 'k6/execution';
import { Counter } from 'k6/metrics';

const base = __ENV.BASE_URL || 'http://localhost:8080';
const scale = Number(__ENV.TIME_SCALE || 1); // of all durations
const steady = Number(__ENV.STEADY_RATE || 2000);
const peak = Number(__ENV.SPIKE_RATE || 20000);
const bulk = Number(__ENV.BULK_RATE || 20000) / 100;
const droppedShare = Number(__ENV.DROPPED_SHARE || 0.001);

const lasts = (n) => Math.max(Math.round(n * scale), 1);
const seconds = (n) => `${lasts(n)}s`;

// Little's law: as many as wait when every answer takes 0.2 s, which is what p99 may,
// and at most twice as many. One that is made while others run comes late for what is due.
// A hundred are for a pause of half a second at 200 bodies a second.
const vus = (rate) => {
  const n = Math.max(Math.ceil(rate * 0.2), 100);
  return { preAllocatedVUs: n, maxVUs: 2 * n };
};

const spiked = [
  { target: steady, duration: seconds(10) },
  { target: steady, duration: seconds(30) },
  { target: peak, duration: seconds(5) },
  { target: peak, duration: seconds(30) },
  { target: steady, duration: seconds(5) },
  { target: steady, duration: seconds(20) },
];
const whole = [10, 30, 5, 30, 5, 20].map(lasts).reduce((a, b) => a + b);

const single0 = Math.ceil(steady / 4);
const bulk0 = Math.ceil(bulk / 10);
const held = [{ target: bulk, duration: seconds(5) }, { target: bulk, duration: seconds(30) }];

// How many iterations are due in stages that begin at a rate of from.
const due = (from, stages) => stages.reduce((sum, s) => {
  sum += (from + s.target) / 2 * parseInt(s.duration, 10);
  from = s.target;
  return sum;
}, 0);
const fewDropped = (n) => [`count<${Math.max(Math.ceil(n * droppedShare), 1)}`];

export const options = {
  discardResponseBodies: true,
  summaryTrendStats: ['avg', 'med', 'p(95)', 'p(99)', 'p(99.9)', 'max'],
  scenarios: {
    single: {
      executor: 'ramping-arrival-rate', exec: 'single', startRate: single0, timeUnit: '1s', ...vus(peak), stages: spiked,
    },
    bulk: {
      executor: 'ramping-arrival-rate', exec: 'bulkOf100', startRate: bulk0, timeUnit: '1s', ...vus(bulk),
      startTime: `${whole + 2}s`,
      stages: held,
    },
  },
  thresholds: {
    'http_req_duration{scenario:single}': ['p(95)<100', 'p(99)<200'],
    'http_req_duration{scenario:bulk}': ['p(95)<100', 'p(99)<200'],
    http_req_failed: ['rate<0.01'],
    'dropped_iterations{scenario:single}': fewDropped(due(single0, spiked)),
    'dropped_iterations{scenario:bulk}': fewDropped(due(bulk0, held)),
    'iterations{scenario:single}': ['count>0'], // named, so that the summary has them
    'iterations{scenario:bulk}': ['count>0'],
  },
};

// Events that a 202 promised, for the ledger, and requests that ended undecided.
const promised = new Counter('events_promised');
const undecided = new Counter('events_undecided');

const head = '{"event_name":"product_view","channel":"web","campaign_id":"summer_sale_2024","user_id":"user_';
const tail = ',"tags":["electronics","featured"],"metadata":{"product_id":"SKU-001","page_url":"/products/laptop"}';
const hex = (n, digits) => n.toString(16).padStart(digits, '0');

// The nth event of an iteration, with an id of its own, so that a retry anywhere would
// count once.
function event(n, time, iteration) {
  const id = `${hex(exec.vu.idInTest, 8)}-${hex(n, 4)}-7000-8000-${iteration}`;
  return `${head}${(exec.vu.idInTest * 7919 + n) % 100000}","timestamp":${time}${tail},"event_id":"${id}"}`;
}

const iteration = () => hex(exec.vu.iterationInInstance, 12);

function count(response, events) {
  if (response.status === 202) {
    promised.add(events);
  } else if (response.status === 0 || response.status >= 500) {
    undecided.add(events);
  }
}

const json = { headers: { 'Content-Type': 'application/json' } };
const ndjson = { headers: { 'Content-Type': 'application/x-ndjson' } };

export function single() {
  count(http.post(`${base}/events`, event(0, Date.now(), iteration()), json), 1);
}

// What the bodies of a VU have in common is put together once: a hundred events from
// their parts take k6 longer than edge takes to store them.
let hundred;

export function bulkOf100() {
  hundred ||= Array.from({ length: 100 }, (_, n) => event(n, '@time', '@iteration') + '\n').join('');
  const body = hundred.replaceAll('@time', Date.now()).replaceAll('@iteration', iteration());
  count(http.post(`${base}/events/bulk`, body, ndjson), 100);
}

export function handleSummary(data) {
  return { [__ENV.RESULTS || 'results.json']: JSON.stringify(data, null, 2) };
}
