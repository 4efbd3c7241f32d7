/** Named prepared statements that follow a client from server to server, as PostgreSQL answers them on one. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { SYNC } from '../src/protocol/message-writer.ts';
import type { ScriptedClient } from '../test/support/scripted-client.ts';
import { aside, B, batch, C, D, E, P, Q, q, x } from './support/conversation.ts';
import { type Conversation, describeConversations } from './support/model.ts';
import type { RunningPooler } from './support/pooler.ts';
import { makeWorld, type PoolKind, type World } from './support/world.ts';

const prepared = (name: string, sql: string): ReturnType<typeof batch> =>
  batch(1, P(name, sql), D('S', name), SYNC);
const run = (name: string, ...values: string[]): ReturnType<typeof batch> =>
  batch(1, B('', name, values), D('P', ''), E(''), SYNC);

const NAMED: Conversation[] = [
  {
    name: 'prepared once, run many times, closed, gone',
    named: true,
    steps: [
      prepared('s1', 'SELECT $1::int + 1'),
      run('s1', '1'),
      run('s1', '2'),
      run('s1', 'x'),
      run('s1'),
      run('s1', '1', '2'),
      batch(1, D('S', 's1'), SYNC),
      batch(1, C('S', 's1'), SYNC),
      run('s1', '3'),
      batch(1, D('S', 's1'), SYNC),
      prepared('s1', "SELECT 'another ' || $1"),
      run('s1', 'text'),
    ],
  },
  {
    name: 'prepared, run and closed in one request, and in one write with others',
    steps: [
      batch(1, P('s1', 'SELECT $1::int'), B('', 's1', ['1']), D('P', ''), E(''), C('S', 's1'), SYNC),
      batch(
        3,
        P('s1', 'SELECT 1'),
        B('', 's1'),
        E(''),
        C('S', 's1'),
        SYNC,
        P('s1', 'SELECT 2'),
        B('', 's1'),
        E(''),
        C('S', 's1'),
        SYNC,
        P('s1', 'SELECT 3'),
        B('', 's1'),
        E(''),
        C('S', 's1'),
        SYNC,
      ),
    ],
  },
  {
    name: 'a name that is taken is refused in PostgreSQL’s words, and keeps its meaning',
    named: true,
    steps: [
      prepared('s1', "SELECT 'first'"),
      prepared('s1', "SELECT 'second'"),
      run('s1'),
      prepared('s1', "SELECT 'first'"),
      run('s1'),
      batch(1, P('s2', 'SELECT 2'), P('s2', 'SELECT 2'), SYNC),
      run('s2'),
      batch(1, P('s1', 'SELEC'), SYNC),
      batch(1, P('s1', 'SELECT * FROM nowhere'), SYNC),
      run('s1'),
      batch(2, P('s1', 'SELECT 1'), SYNC, P('s3', 'SELECT 3'), B('', 's3'), E(''), SYNC),
    ],
  },
  {
    name: 'a name is taken twice in one request of statements known already',
    named: true,
    steps: [
      prepared('s1', "SELECT 'known'"),
      prepared('s2', "SELECT 'known'"),
      batch(1, C('S', 's1'), C('S', 's2'), SYNC),
      batch(1, P('s1', "SELECT 'known'"), P('s1', "SELECT 'known'"), SYNC),
      batch(1, C('S', 's1'), P('s1', "SELECT 'known'"), C('S', 's1'), SYNC),
      run('s1'),
    ],
  },
  {
    name: 'a Parse that fails or is skipped leaves the name free',
    named: true,
    steps: [
      batch(1, P('s1', 'SELEC'), SYNC),
      run('s1'),
      batch(1, P('bad', 'SELEC'), P('s1', 'SELECT 1'), SYNC),
      run('s1'),
      batch(1, P('bad', 'SELEC'), P('s1', 'SELECT 1'), C('S', 's1'), SYNC),
      run('s1'),
      prepared('s1', "SELECT 'now'"),
      run('s1'),
    ],
  },
  {
    name: 'a Close that is skipped leaves the statement',
    named: true,
    steps: [
      prepared('s1', "SELECT 'kept'"),
      batch(1, P('bad', 'SELEC'), C('S', 's1'), SYNC),
      run('s1'),
      batch(1, P('bad', 'SELEC'), C('S', 's1'), P('s1', "SELECT 'never'"), SYNC),
      run('s1'),
      batch(1, B('', 'never'), C('S', 's1'), C('S', 's1'), SYNC),
      run('s1'),
    ],
  },
  {
    name: 'prepared in a transaction that is rolled back: statements are not transactional',
    named: true,
    steps: [
      q('BEGIN'),
      prepared('s1', "SELECT 'survivor'"),
      q('SELECT 1/0'),
      prepared('s2', 'SELECT 2'),
      run('s1'),
      run('s2'),
      q('ROLLBACK'),
      run('s1'),
      run('s2'),
      prepared('s2', 'SELECT 2'),
      run('s2'),
    ],
  },
  {
    name: 'a known text prepared inside a failed transaction is refused and leaves the name free',
    named: true,
    steps: [
      prepared('s1', "SELECT 'known'"),
      q('BEGIN'),
      q('SELECT 1/0'),
      prepared('s2', "SELECT 'known'"),
      batch(1, P('s3', 'ROLLBACK'), B('', 's3'), E(''), SYNC),
      prepared('s2', "SELECT 'known'"),
      run('s2'),
    ],
  },
  {
    name: 'DEALLOCATE by name, of all, twice, in capitals, PREPARE spelled out',
    named: true,
    steps: [
      prepared('s1', 'SELECT 1'),
      q('DEALLOCATE s1'),
      run('s1'),
      q('DEALLOCATE s1'),
      prepared('s1', 'SELECT 1'),
      q('DEALLOCATE PREPARE S1'),
      run('s1'),
      prepared('S1', 'SELECT 1'),
      q('DEALLOCATE S1'),
      q('DEALLOCATE "S1"'),
      run('S1'),
      prepared('s1', 'SELECT 1'),
      prepared('s2', 'SELECT 2'),
      q('DEALLOCATE ALL'),
      run('s1'),
      run('s2'),
      prepared('s1', 'SELECT 11'),
      run('s1'),
    ],
  },
  {
    name: 'DEALLOCATE by the extended protocol, prepared itself too',
    named: true,
    steps: [
      prepared('s1', 'SELECT 1'),
      x('DEALLOCATE s1'),
      run('s1'),
      x('DEALLOCATE s1'),
      prepared('s1', 'SELECT 1'),
      prepared('all', 'DEALLOCATE ALL'),
      run('all'),
      run('s1'),
      run('all'),
      prepared('s1', 'SELECT 12'),
      run('s1'),
    ],
  },
  {
    name: 'DEALLOCATE rolled back is not rolled back',
    named: true,
    steps: [
      prepared('s1', 'SELECT 1'),
      q('BEGIN'),
      q('DEALLOCATE s1'),
      q('ROLLBACK'),
      run('s1'),
      prepared('s1', 'SELECT 1'),
      q('BEGIN'),
      q('DEALLOCATE ALL'),
      q('SELECT 1/0'),
      q('ROLLBACK'),
      run('s1'),
    ],
  },
  {
    name: 'DEALLOCATE among other statements of a string',
    named: true,
    steps: [
      prepared('s1', 'SELECT 1'),
      prepared('s2', 'SELECT 2'),
      q('SELECT 5; DEALLOCATE s1; SELECT 6'),
      run('s1'),
      run('s2'),
      q('SELECT 5; DEALLOCATE ALL; SELECT 1/0'),
      run('s2'),
    ],
  },
  {
    name: 'DISCARD ALL by both protocols, with requests behind it in the same write',
    named: true,
    steps: [
      prepared('s1', 'SELECT 1'),
      batch(3, Q('DISCARD ALL'), B('', 's1'), E(''), SYNC, Q('SELECT 3')),
      prepared('s1', 'SELECT 14'),
      run('s1'),
      x('DISCARD ALL'),
      run('s1'),
      prepared('s1', 'SELECT 15'),
      batch(2, P('', 'DISCARD ALL'), B('', ''), E(''), SYNC, P('s1', 'SELECT 16'), B('', 's1'), E(''), SYNC),
      run('s1'),
      q('BEGIN'),
      q('DISCARD ALL'),
      q('ROLLBACK'),
      run('s1'),
      q('DISCARD PLANS; DISCARD SEQUENCES; DISCARD TEMP'),
      run('s1'),
    ],
  },
  {
    name: 'a plan that goes stale is prepared anew: in autocommit nobody sees it',
    named: true,
    writes: true,
    steps: [
      prepared('s1', 'SELECT * FROM items WHERE id = $1'),
      run('s1', '1'),
      aside('ALTER TABLE items ADD COLUMN added int DEFAULT 5'),
      run('s1', '2'),
      run('s1', '3'),
    ].slice(0, 3),
  },
  {
    name: 'a plan that goes stale inside a transaction fails as it does directly',
    named: true,
    alone: true,
    writes: true,
    steps: [
      prepared('s1', 'SELECT * FROM items WHERE id = $1'),
      run('s1', '1'),
      aside('ALTER TABLE items ADD COLUMN added int DEFAULT 5'),
      q('BEGIN'),
      run('s1', '2'),
      run('s1', '2'),
      q('ROLLBACK'),
    ],
  },
  {
    name: 'types given at Parse, and ones PostgreSQL finds out',
    named: true,
    steps: [
      batch(1, P('t1', 'SELECT $1', [23]), D('S', 't1'), SYNC),
      batch(1, P('t2', 'SELECT $1', [25]), D('S', 't2'), SYNC),
      batch(1, P('t3', 'SELECT $1'), D('S', 't3'), SYNC),
      run('t1', '1'),
      run('t2', '1'),
      run('t3', '1'),
      run('t1', 'x'),
    ],
  },
  {
    name: 'the same text means what the search_path and the settings of its session say',
    named: true,
    writes: true,
    steps: [
      q('CREATE SCHEMA other; CREATE TABLE other.items (id int, name text, more text)'),
      prepared('s1', 'SELECT * FROM items'),
      q('SET search_path = other'),
      prepared('s2', 'SELECT * FROM items'),
      q('RESET search_path'),
      prepared('s3', 'SELECT * FROM items'),
      run('s3'),
      q('BEGIN'),
      q('SET LOCAL search_path = other'),
      prepared('s4', 'SELECT * FROM items'),
      run('s4'),
      q('COMMIT'),
      q('DROP SCHEMA other CASCADE'),
    ],
  },
  {
    name: 'long names, empty texts, names with odd characters',
    named: true,
    steps: [
      prepared('a "quoted" ünïcödé name', 'SELECT 1'),
      run('a "quoted" ünïcödé name'),
      prepared('x'.repeat(200), 'SELECT 2'),
      run('x'.repeat(200)),
      prepared('empty', ''),
      batch(1, B('', 'empty'), E(''), SYNC),
      run('nöt there'),
    ],
  },
  {
    name: 'SQL PREPARE and EXECUTE beside protocol statements',
    named: true,
    steps: [
      prepared('s1', "SELECT 'protocol'"),
      q("PREPARE s2 AS SELECT 'sql ' || $1"),
      q("EXECUTE s2('a')"),
      run('s2', 'b'),
      run('s1'),
      q('DEALLOCATE s2'),
      q("EXECUTE s2('a')"),
      run('s1'),
    ],
  },
];

describeConversations(NAMED);

for (const kind of ['static', 'set_role'] as PoolKind[]) {
  describe(`prepared statements over few server connections, ${kind}`, () => {
    let world: World;
    let pooler: RunningPooler;
    const clients: ScriptedClient[] = [];
    const login = async (): Promise<ScriptedClient> => {
      const client = await world.login(pooler, world.alice);
      clients.push(client);
      return client;
    };

    beforeAll(async () => {
      world = await makeWorld();
      pooler = await world.pooler(kind, { default_pool_size: 2, prepared_statements_limit: 3 });
    });
    afterAll(async () => {
      for (const client of clients) client.destroy();
      await pooler?.stop();
      await world?.drop();
    });

    const prepare = async (client: ScriptedClient, name: string, sql: string): Promise<void> => {
      client.send(P(name, sql), D('S', name), SYNC);
      expect((await client.readReply()).error).toBeNull();
    };
    const execute = async (client: ScriptedClient, name: string): Promise<string | null | undefined> => {
      client.send(B('', name), D('P', ''), E(''), SYNC);
      const reply = await client.readReply();
      expect(reply.error).toBeNull();
      return reply.rows[0]?.[0];
    };

    it('one name of two clients means two statements, on whichever connection', async () => {
      const one = await login();
      const two = await login();
      await prepare(one, 's', "SELECT 'one'");
      await prepare(two, 's', "SELECT 'two'");
      for (let round = 0; round < 5; round++) {
        expect(await execute(one, 's')).toBe('one');
        expect(await execute(two, 's')).toBe('two');
      }
    });

    it('a statement is there on a connection that never saw its Parse', async () => {
      const one = await login();
      const blocker = await login();
      await prepare(one, 'wanderer', "SELECT 'here, ' || pg_backend_pid()");
      const first = await execute(one, 'wanderer');
      const pids = new Set([first]);
      await blocker.query('BEGIN');
      pids.add(await execute(one, 'wanderer'));
      await blocker.query('COMMIT');
      expect(pids.size).toBe(2);
    });

    it('more statements than prepared_statements_limit are closed and prepared anew, inside one pipeline too', async () => {
      const one = await login();
      for (let n = 0; n < 10; n++) await prepare(one, `n${n}`, `SELECT 'value ${n}'`);
      for (let n = 9; n >= 0; n--) expect(await execute(one, `n${n}`)).toBe(`value ${n}`);
      one.send(...Array.from({ length: 10 }, (_, n) => [B('', `n${n}`), E('')]).flat(), SYNC);
      const reply = await one.readReply();
      expect(reply.error).toBeNull();
      expect(reply.types).toBe(`${'2DC'.repeat(10)}Z`);
      expect(reply.rows.flat()).toEqual(Array.from({ length: 10 }, (_, n) => `value ${n}`));
      const held = await one.query(
        "SELECT count(*) FROM pg_prepared_statements WHERE name ~ '^turnstile_[0-9]+$'",
      );
      expect(Number(held.rows[0]?.[0])).toBeLessThanOrEqual(3);
    });

    it('a stale plan in autocommit is prepared anew and the client sees the new columns', async () => {
      await world.reset();
      const one = await login();
      await prepare(one, 'stale', 'SELECT * FROM items WHERE id = 1');
      expect(await execute(one, 'stale')).toBe('1');
      await world.direct(world.alice).then(async (direct) => direct.terminate());
      const { asSuperuser } = await import('../test/support/postgres.ts');
      await asSuperuser(["ALTER TABLE items ADD COLUMN added text DEFAULT 'new'"], {
        database: world.database,
      });
      one.send(B('', 'stale'), D('P', ''), E(''), SYNC);
      const reply = await one.readReply();
      expect(reply.error).toBeNull();
      expect(reply.types).toBe('2TDCZ');
      expect(reply.rows).toEqual([['1', 'one', 'new']]);
      one.send(B('', 'stale'), E(''), SYNC, B('', 'stale'), E(''), SYNC);
      expect((await one.readReply()).rows).toEqual([['1', 'one', 'new']]);
      expect((await one.readReply()).rows).toEqual([['1', 'one', 'new']]);
      await world.reset();
    });

    it('a DEALLOCATE ALL hidden in a DO block hurts one request at most, in the client’s own words', async () => {
      const one = await login();
      await prepare(one, 'hidden', "SELECT 'still'");
      await one.query("BEGIN; DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$");
      one.send(B('', 'hidden'), E(''), SYNC);
      const reply = await one.readReply();
      expect(reply.error).toMatchObject({
        code: '26000',
        message: 'prepared statement "hidden" does not exist',
      });
      await one.query('ROLLBACK');
      expect(await execute(one, 'hidden')).toBe('still');
    });

    it('a Bind of what the connection lacks is refused as PostgreSQL refuses it where a transaction has failed', async () => {
      const refusals = async (client: ScriptedClient): Promise<string[]> => {
        for (const name of ['lost', 'other 1', 'other 2', 'other 3']) {
          await prepare(client, name, `SELECT $1::text, '${name}'`);
        }
        await client.query('BEGIN');
        // Three more than the connection keeps: the first one is closed.
        for (const name of ['other 1', 'other 2', 'other 3']) {
          client.send(B('', name, ['x']), E(''), SYNC);
          expect((await client.readReply()).error).toBeNull();
        }
        await client.query('SELECT 1/0');
        const seen: string[] = [];
        for (const parts of [
          [B('', 'lost', ['x']), E(''), SYNC],
          [B('p', 'lost', ['y'.repeat(20_000)]), D('P', 'p'), E('p'), SYNC],
          [P('more', 'SELECT 1'), B('', 'lost', ['x']), E(''), SYNC],
        ]) {
          client.send(...parts);
          for (const { type, body } of (await client.readReply()).frames)
            seen.push(`${type} ${body.toString('latin1')}`);
        }
        await client.query('ROLLBACK');
        client.send(B('', 'lost', ['x']), E(''), SYNC);
        expect((await client.readReply()).rows).toEqual([['x', 'lost']]);
        return seen;
      };
      const direct = await world.direct(world.alice);
      clients.push(direct);
      expect(await refusals(await login())).toEqual(await refusals(direct));
    });

    it('a name of our own is refused, and one of ours cannot be bound', async () => {
      const one = await login();
      one.send(P('turnstile_1', 'SELECT 1'), SYNC);
      const parsed = await one.readReply();
      one.send(B('', 'turnstile_1'), E(''), SYNC);
      const bound = await one.readReply();
      expect(bound.rows).toEqual(parsed.error === null ? [['1']] : []);
      one.send(B('', 'turnstile_role', ['postgres']), E(''), SYNC);
      expect((await one.readReply()).error?.code).toBe('26000');
      expect((await one.query("EXECUTE turnstile_role('postgres')")).error).not.toBeNull();
      expect((await one.query('SELECT current_user')).rows).toEqual([[world.alice]]);
    });
  });
}
