/**
 * The login rows: a new connection for every transaction, with a token, with SCRAM, and with nothing to prove. Must
 * not know how poolers are started.
 */
import { atLeast, makeRow } from './report.mjs';

const WARM_UP_S = 1;

/**
 * @param {import('./bench.mjs').Bench} bench
 * @returns {Promise<import('./report.mjs').Row[]>}
 */
export async function measureLogins(bench) {
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
