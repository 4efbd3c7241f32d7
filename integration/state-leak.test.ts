/**
 * The property that a pooler lives by: four clients of two roles share two server connections per role, at random do
 * all that leaves state behind, and every answer must be the one that a connection of their own gives. The model is
 * a direct connection per client, held in step. The seed is in the name of each test and in every failure.
 */
import { randomInt } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { SYNC } from '../src/protocol/message-writer.ts';
import type { Reply, ScriptedClient } from '../test/support/scripted-client.ts';
import { B, C, D, E, P, Q } from './support/conversation.ts';
import type { RunningPooler } from './support/pooler.ts';
import { makeWorld, type PoolKind, untilPoolsRest, type World } from './support/world.ts';

const STEPS = 1_500;
const GIVEN_SEED = process.env['STATE_LEAK_SEED'];

/** mulberry32: small, and the same everywhere. */
function randomFrom(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

interface Twin {
  readonly role: string;
  readonly pooled: ScriptedClient;
  readonly direct: ScriptedClient;
}

/** What a session can see of itself; a leak of somebody else's shows here. */
const PROBE = `SELECT current_user, current_setting('search_path'), current_setting('work_mem'),
  current_setting('TimeZone'), current_setting('application_name'), current_setting('DateStyle'),
  coalesce(current_setting('my.custom', true), ''), current_setting('statement_timeout'),
  (SELECT count(*) FROM pg_listening_channels()), to_regclass('pg_temp.mine') IS NOT NULL,
  (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
  (SELECT count(*) FROM pg_cursors WHERE name = 'held'), '2020-01-01 00:00:00+00'::timestamptz`;

const SETTINGS: readonly (readonly [string, readonly string[]])[] = [
  ['search_path', ['public', 'pg_catalog', '"odd one", public']],
  ['work_mem', ["'5MB'", "'6MB'", "'bad'"]],
  ['TimeZone', ["'Asia/Tokyo'", "'Europe/Paris'", "'UTC'", "'Nowhere'"]],
  ['application_name', ["'a'", "'b c'", "''"]],
  ['DateStyle', ["'German'", "'SQL, DMY'"]],
  ['my.custom', ["'x'", "'y'"]],
  ['statement_timeout', ['20000', '0', '30000']],
];

type Request = Buffer[];

/** A random request; every one is answered by exactly one ReadyForQuery. */
function makeRequest(random: (below: number) => number): Request {
  const pick = <T>(list: readonly T[]): T => list[random(list.length)] as T;
  const [name, values] = pick(SETTINGS);
  const statement = pick(['s1', 's2', '']);
  const texts = [
    `SELECT 'one', coalesce(current_setting('${name}', true), '')`,
    "SELECT 'two', $1::text",
    'SELECT * FROM items WHERE id = 1',
    'SELEC',
    `SET ${name} = ${pick(values)}`,
  ];
  const simple = (...sql: string[]): Request => [Q(pick(sql))];
  switch (random(16)) {
    case 0:
    case 1:
      return simple(`SET ${name} = ${pick(values)}`, `RESET ${name}`, `SET ${name} TO DEFAULT`, 'RESET ALL');
    case 2:
      return simple(
        `SET LOCAL ${name} = ${pick(values)}`,
        `SELECT set_config('${name}', ${name === 'search_path' ? "'public'" : `${pick(values)}::text`}, ${pick(['true', 'false'])})`,
      );
    case 3:
    case 4:
      return simple(
        'BEGIN',
        'BEGIN',
        'COMMIT',
        'ROLLBACK',
        'SAVEPOINT a',
        'ROLLBACK TO a',
        'RELEASE a',
        'COMMIT AND CHAIN',
      );
    case 5:
      return simple(
        'SELECT 1/0',
        'SELEC',
        'SELECT * FROM nowhere',
        "SELECT 1; SET work_mem = '7MB'; SELECT 1/0",
      );
    case 6:
      return simple(
        'CREATE TEMP TABLE mine AS SELECT 7 AS seven',
        'SELECT seven FROM mine',
        'DROP TABLE mine',
        'DISCARD TEMP',
      );
    case 7:
      return simple('LISTEN channel', 'UNLISTEN *', 'UNLISTEN channel');
    case 8:
      return simple(
        'SELECT pg_advisory_lock_shared(7)',
        'SELECT pg_advisory_unlock_all()',
        'SELECT pg_advisory_xact_lock_shared(8)',
        'DECLARE held CURSOR WITH HOLD FOR SELECT g FROM generate_series(1, 3) g',
        'FETCH 1 FROM held',
        'CLOSE held',
      );
    case 9:
      return simple(
        'PREPARE p AS SELECT 1',
        'EXECUTE p',
        'DEALLOCATE p',
        'DEALLOCATE s1',
        'DEALLOCATE ALL',
        'SELECT 1; DEALLOCATE s2; SELECT 2',
      );
    case 10:
      return simple('DISCARD ALL', PROBE, PROBE);
    case 11:
      return [P(statement, pick(texts)), ...(random(2) === 0 ? [D('S', statement)] : []), SYNC];
    case 12:
    case 13:
      return [
        B('', statement, random(3) === 0 ? ['v'] : []),
        ...(random(2) === 0 ? [D('P', '')] : []),
        E(''),
        SYNC,
      ];
    case 14:
      return [
        C('S', statement),
        ...(random(2) === 0 ? [P(statement, pick(texts)), B('', statement), E('')] : []),
        SYNC,
      ];
    default:
      return [P('', PROBE), B('', ''), D('P', ''), E(''), SYNC];
  }
}

/**
 * In a failed transaction a statement cannot be prepared on a connection that lacks it, so the refusal comes before
 * the look at the values. Both are refusals of the same request.
 */
function refusedBefore(pooled: Reply, direct: Reply): boolean {
  return pooled.error?.code === '25P02' && direct.error?.code === '08P01' && direct.status === 'E';
}

/** A reply without what must differ: source lines, table OIDs, and the server's word for its own parse of our text. */
function comparable(reply: Reply): unknown {
  return {
    types: reply.types.replaceAll(/[SN]/g, ''),
    rows: reply.rows,
    columns: reply.columns,
    tags: reply.tags,
    error: reply.error === null ? null : `${reply.error.code} ${reply.error.message}`,
    notices: reply.notices.map((notice) => `${notice.code} ${notice.message}`),
    status: reply.status,
  };
}

for (const kind of ['static', 'set_role'] as PoolKind[]) {
  const seed = GIVEN_SEED === undefined ? randomInt(2 ** 31) : Number(GIVEN_SEED);
  describe(`state of sessions over few server connections, ${kind}, seed ${seed}`, () => {
    let world: World;
    let pooler: RunningPooler;

    beforeAll(async () => {
      world = await makeWorld();
      // As many connections as clients of one role could pin, so that nobody waits for another's pin.
      pooler = await world.pooler(kind, { default_pool_size: 2, checkout_timeout: 20_000 });
    });
    afterAll(async () => {
      await pooler?.stop();
      await world?.drop();
    });

    it(`${STEPS} random steps are answered as by direct connections`, async () => {
      const random = randomFrom(seed);
      const roles = [world.alice, world.alice, world.bob, world.bob];
      const open = async (role: string): Promise<Twin> => ({
        role,
        pooled: await world.login(pooler, role),
        direct: await world.direct(role),
      });
      const twins = await Promise.all(roles.map(open));
      const history: string[] = [];
      try {
        for (let step = 0; step < STEPS; step++) {
          const index = random(twins.length);
          const twin = twins[index] as Twin;
          if (random(40) === 0) {
            history.push(`${index}: leaves`);
            const { role } = twin;
            // Without a word, or with Terminate.
            if (random(2) === 0) {
              twin.pooled.destroy();
              twin.direct.destroy();
            } else {
              await Promise.all([twin.pooled.terminate(), twin.direct.terminate()]);
            }
            twins[index] = await open(role);
            continue;
          }
          const request = makeRequest(random);
          const text = Buffer.concat(request)
            .toString('latin1')
            .replaceAll(/[^ -~]+/g, '·');
          history.push(`${index}: ${text.slice(0, 300)}`);
          twin.pooled.send(...request);
          twin.direct.send(...request);
          const [pooled, direct] = await Promise.all([
            twin.pooled.readReply(15_000),
            twin.direct.readReply(15_000),
          ]);
          if (refusedBefore(pooled, direct)) continue;
          expect(comparable(pooled), `seed ${seed}, step ${step}:\n${history.slice(-40).join('\n')}`).toEqual(
            comparable(direct),
          );
        }
      } catch (error) {
        if ((error as Error).name === 'AssertionError') throw error;
        throw new Error(`seed ${seed}: ${(error as Error).message}\n${history.slice(-40).join('\n')}`);
      } finally {
        for (const twin of twins) {
          twin.pooled.destroy();
          twin.direct.destroy();
        }
      }
      await untilPoolsRest(pooler);
      const after = await world.login(pooler, world.alice);
      const fresh = await world.direct(world.alice);
      expect(comparable(await after.query(PROBE))).toEqual(comparable(await fresh.query(PROBE)));
      after.destroy();
      fresh.destroy();
    });
  });
}
