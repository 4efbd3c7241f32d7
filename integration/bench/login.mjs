/**
 * The login rows: a new connection for every transaction, with a token, with SCRAM, and with nothing to prove. Must
 * not know how poolers are started.
 */
import { startHelper } from './child.mjs';
import { atLeast, makeRow } from './report.mjs';

const WARM_UP_S = 1;
/** Logins of one run of our own client: enough for a second or more, few enough to sign a token for each. */
const LOGINS = 4_000;
const WARM_UP_LOGINS = 500;
const ALGORITHMS = /** @type {const} */ (['RS256', 'ES256', 'EdDSA']);

/**
 * @param {import('./bench.mjs').Bench} bench
 * @returns {Promise<import('./report.mjs').Row[]>}
 */
export async function measureLogins(bench) {
  const reconnecting = await measureReconnecting(bench);
  return [...reconnecting, ...(await measureTokens(bench))];
}

/**
 * pgbench, which logs in anew for each transaction, always with the same token.
 * @param {import('./bench.mjs').Bench} bench
 * @returns {Promise<import('./report.mjs').Row[]>}
 */
async function measureReconnecting(bench) {
  const clients = bench.options.loginClients;
  const contestants = {
    direct: bench.direct(),
    'pgbouncer any': await bench.pgbouncer('any'),
    'pgbouncer scram': await bench.pgbouncer('scram-verifier'),
    'pgbouncer scram-password': await bench.pgbouncer('scram-password'),
    'pgturnstile jwt': await bench.pgturnstile('jwt'),
    'pgturnstile trust': await bench.pgturnstile('trust'),
  };
  const measure = (/** @type {import('./bench.mjs').Place} */ place, seconds = bench.options.seconds) =>
    bench.pgbench(place, { clients, seconds, reconnect: true });
  for (const [name, place] of Object.entries(contestants)) {
    if (place?.pooler) await bench.attempt(`warm-up, ${name}`, () => measure(place, WARM_UP_S));
  }
  const what = `-C -S, ${clients} clients`;
  const results = await bench.rounds(what, contestants, (place) => measure(place));
  await bench.stop(Object.values(contestants));
  const figures = (
    /** @type {keyof typeof contestants} */ name,
    /** @type {'tps' | 'cpuUs'} */ key = 'tps',
  ) => (results[name] ?? []).map((sample) => sample?.[key] ?? null);
  const common = { section: 'login', unit: 'logins/s' };
  const jwt = figures('pgturnstile jwt');
  const direct = figures('direct');
  const any = figures('pgbouncer any');
  return [
    makeRow({
      ...common,
      what: `${what}: JWT; auth_type=any`,
      direct,
      pgbouncer: any,
      pgturnstile: jwt,
      target: atLeast(0.4),
      note: "Direct logins are trust, without a proof; so is PgBouncer's auth_type=any.",
    }),
    makeRow({
      ...common,
      what: `${what}: JWT; SCRAM, verifiers`,
      pgbouncer: figures('pgbouncer scram'),
      pgturnstile: jwt,
      target: atLeast(5),
      note: "SCRAM with PostgreSQL's verifier in the auth_file: only the client derives keys (4,096 rounds).",
    }),
    makeRow({
      ...common,
      what: `${what}: JWT; SCRAM, passwords`,
      pgbouncer: figures('pgbouncer scram-password'),
      pgturnstile: jwt,
      target: atLeast(5),
      note: 'SCRAM with the password itself in the auth_file: PgBouncer derives keys too, at every login.',
    }),
    makeRow({
      ...common,
      what: `${what}: trust; auth_type=any`,
      direct,
      pgbouncer: any,
      pgturnstile: figures('pgturnstile trust'),
    }),
    makeRow({
      ...common,
      what: `${what}: JWT; auth_type=any`,
      unit: 'CPU µs/login',
      pgbouncer: figures('pgbouncer any', 'cpuUs'),
      pgturnstile: figures('pgturnstile jwt', 'cpuUs'),
    }),
  ];
}

/**
 * Our own client, which only logs in: with a token that was seen a moment ago, and with a new one each time.
 * @param {import('./bench.mjs').Bench} bench
 * @returns {Promise<import('./report.mjs').Row[]>}
 */
async function measureTokens(bench) {
  const clients = bench.options.loginClients;
  const count = Math.min(LOGINS, bench.options.seconds * LOGINS);
  const any = await bench.pgbouncer('any');
  const floor = await bench.floor();
  const own = [];
  for (const algorithm of ALGORITHMS) own.push(await bench.pgturnstile('jwt', algorithm));
  /** @type {Record<string, import('./bench.mjs').Place | null>} */
  const contestants = { 'pgbouncer any': any, floor };
  for (const [index, algorithm] of ALGORITHMS.entries()) {
    contestants[`warm ${algorithm}`] = own[index] ?? null;
    contestants[`cold ${algorithm}`] = own[index] ?? null;
  }
  const helper = startHelper(bench.workplace, 'login-storm.mjs');
  try {
    for (const [name, place] of Object.entries({ any, floor, ...own })) {
      if (!place) continue;
      const how = { clients, count: WARM_UP_LOGINS, passwords: [place.password] };
      await bench.attempt(`warm-up, ${name}`, () => bench.logins(place, helper, how));
    }
    const what = `logins alone, ${clients} clients`;
    const results = await bench.rounds(what, contestants, (place, name) => {
      const isCold = name.startsWith('cold');
      const passwords = isCold ? (place.pooler?.mint?.(count) ?? []) : [place.password];
      return bench.logins(place, helper, { clients, count, passwords });
    });
    const tps = (/** @type {string} */ name) => (results[name] ?? []).map((sample) => sample?.tps ?? null);
    const common = { section: 'login', unit: 'logins/s', pgbouncer: tps('pgbouncer any') };
    const rows = ALGORITHMS.flatMap((algorithm) => [
      makeRow({
        ...common,
        what: `${what}: ${algorithm}, seen before; auth_type=any`,
        pgturnstile: tps(`warm ${algorithm}`),
        ...(algorithm === 'RS256' && { target: atLeast(0.7) }),
      }),
      makeRow({
        ...common,
        what: `${what}: ${algorithm}, new each time; auth_type=any`,
        pgturnstile: tps(`cold ${algorithm}`),
        ...(algorithm === 'RS256' && { target: atLeast(0.5) }),
      }),
    ]);
    const note =
      'A server of node:net that sends two answers made beforehand and checks nothing: the floor of Node.js.';
    return [
      ...rows,
      makeRow({
        ...common,
        what: `${what}: an empty server; auth_type=any`,
        pgturnstile: tps('floor'),
        note,
      }),
    ];
  } finally {
    await helper.end();
    await bench.stop([any, floor, ...own]);
  }
}
