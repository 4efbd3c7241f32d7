/** Pools that assume a role: who the session is on every statement, what is refused, and what leads nowhere. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { SYNC } from '../src/protocol/message-writer.ts';
import { asSuperuser } from '../test/support/postgres.ts';
import { frame, type ScriptedClient } from '../test/support/scripted-client.ts';
import { B, E, P, Q } from './support/conversation.ts';
import type { RunningPooler } from './support/pooler.ts';
import { makeWorld, untilPoolsRest, type World } from './support/world.ts';

const WHO = 'SELECT session_user, current_user';

for (const mode of ['transaction', 'session']) {
  describe(`a role that is assumed, ${mode} mode`, () => {
    let world: World;
    let pooler: RunningPooler;
    let client: ScriptedClient;
    let who: string[];

    beforeAll(async () => {
      world = await makeWorld();
      pooler = await world.pooler('set_role', {
        pooler_mode: mode,
        default_pool_size: 1,
        checkout_timeout: 3_000,
      });
      who = [world.service, world.alice];
      // The word is put together at run time, so that no text shows it.
      await asSuperuser(
        [
          `CREATE FUNCTION public.flee(what text) RETURNS text LANGUAGE plpgsql AS $$
           BEGIN EXECUTE what; RETURN current_user; END $$`,
        ],
        { database: world.database },
      );
    });
    afterAll(async () => {
      await pooler?.stop();
      await world?.drop();
    });
    beforeEach(async () => {
      client = await world.login(pooler, world.alice);
    });
    afterEach(async () => {
      client?.destroy();
      await untilPoolsRest(pooler);
    });

    it('is current_user on every statement, by both protocols, in and behind transactions', async () => {
      const expectWho = async (): Promise<void> => {
        expect((await client.query(WHO)).rows).toEqual([who]);
        expect((await client.extended({ sql: WHO })).rows).toEqual([who]);
      };
      await expectWho();
      for (const sql of [
        'BEGIN',
        'SELECT 1',
        'ROLLBACK',
        'BEGIN',
        'SELECT 1/0',
        'ROLLBACK',
        'DISCARD ALL',
        'RESET ALL',
      ]) {
        const { status } = await client.query(sql);
        if (status !== 'E') await expectWho();
      }
      await client.query('BEGIN');
      await client.query('ROLLBACK AND CHAIN');
      await expectWho();
      await client.query('COMMIT');
      await expectWho();
    });

    it('is there behind DISCARD ALL and ROLLBACK in the same write', async () => {
      client.send(Q('DISCARD ALL'), Q(WHO), Q('BEGIN'), Q(WHO), Q('ROLLBACK'), Q(WHO));
      const replies = [];
      for (let count = 0; count < 6; count++) replies.push(await client.readReply());
      expect(replies.map((reply) => reply.error)).toEqual(Array(6).fill(null));
      expect(replies.flatMap((reply) => reply.rows)).toEqual([who, who, who]);
      client.send(P('', 'DISCARD ALL'), B('', ''), E(''), SYNC, P('', WHO), B('', ''), E(''), SYNC);
      expect((await client.readReply()).tags).toEqual(['DISCARD ALL']);
      expect((await client.readReply()).rows).toEqual([who]);
      client.send(P('', 'DISCARD ALL'), B('', ''), E(''), P('', WHO), B('', ''), E(''), SYNC);
      expect((await client.readReply()).rows).toEqual([who]);
    });

    const escapes = (): string[] => [
      'SET ROLE none',
      `SET ROLE ${world.bob}`,
      `SET LOCAL ROLE ${world.bob}`,
      "SET SESSION ROLE 'postgres'",
      `set /* a */ role to ${world.bob}`,
      'RESET ROLE',
      'SET SESSION AUTHORIZATION DEFAULT',
      `SET SESSION AUTHORIZATION ${world.bob}`,
      'RESET SESSION AUTHORIZATION',
      `SELECT set_config('role', '${world.bob}', false)`,
      "SELECT pg_catalog.set_config('ROLE', 'none', true)",
      `SELECT 1, (SELECT set_config('session_authorization', '${world.bob}', false))`,
      "SELECT set_config('ro' || 'le', 'none', false)",
      "WITH c AS (SELECT set_config('role', 'none', false)) SELECT * FROM c",
      "UPDATE pg_settings SET setting = 'none' WHERE name = 'role'",
      'DO $$ BEGIN SET ROLE none; END $$',
      'SELECT 1; RESET ROLE; SELECT 2',
      `INSERT INTO items VALUES (99, 'x'); SET ROLE ${world.bob}`,
      'BEGIN; SET ROLE none; COMMIT',
      'PREPARE p AS SELECT 1; RESET ROLE',
    ];

    it('refuses each direct escape with 42501, and nothing of its string is done', async () => {
      for (const sql of escapes()) {
        const reply = await client.query(sql);
        expect(reply.types, sql).toBe('EZ');
        expect(reply.error, sql).toMatchObject({ severity: 'ERROR', code: '42501' });
        expect(reply.status, sql).toBe('I');
        expect((await client.query(WHO)).rows, sql).toEqual([who]);
      }
      expect((await client.query('SELECT count(*) FROM items WHERE id = 99')).rows).toEqual([['0']]);
    });

    it('refuses it when it is prepared, and skips to the Sync', async () => {
      for (const sql of escapes().filter((text) => !text.includes(';'))) {
        client.send(P('s', sql), B('', 's'), E(''), SYNC);
        const named = await client.readReply();
        expect(named.types, sql).toBe('EZ');
        expect(named.error?.code, sql).toBe('42501');
        const unnamed = await client.extended({ sql });
        expect(unnamed.types, sql).toBe('EZ');
        expect(unnamed.error?.code, sql).toBe('42501');
        client.send(B('', ''), E(''), SYNC);
        expect((await client.readReply()).error?.code, sql).toBe('26000');
      }
      expect((await client.query(WHO)).rows).toEqual([who]);
    });

    it('leaves the transaction in the failed state, as after any error', async () => {
      for (const extended of [false, true]) {
        await client.query('BEGIN');
        const refused = extended
          ? await client.extended({ sql: 'RESET ROLE' })
          : await client.query('RESET ROLE');
        expect(refused).toMatchObject({ types: 'EZ', status: 'E', error: { code: '42501' } });
        expect((await client.query('SELECT 1')).error?.code).toBe('25P02');
        expect((await client.query('COMMIT')).tags).toEqual(['ROLLBACK']);
        expect((await client.query(WHO)).rows).toEqual([who]);
      }
      await client.query('BEGIN');
      await client.query('SAVEPOINT a');
      expect((await client.query('SET ROLE none')).status).toBe('E');
      expect((await client.query('ROLLBACK TO a')).status).toBe('T');
      expect((await client.query(WHO)).rows).toEqual([who]);
      await client.query('COMMIT');
    });

    it('refuses an escape in the middle of a pipeline and answers the rest', async () => {
      client.send(
        P('', 'SELECT 1'),
        B('', ''),
        E(''),
        P('', 'RESET ROLE'),
        B('', ''),
        E(''),
        SYNC,
        Q('SELECT 2'),
      );
      expect((await client.readReply()).types).toBe('12DCEZ');
      expect((await client.readReply()).rows).toEqual([['2']]);
    });

    it.each([
      'SET ROLE none',
      'RESET ROLE',
      'SET LOCAL ROLE none',
      'SET SESSION AUTHORIZATION DEFAULT',
    ])('a function that runs %s does not reach the next client', async (what) => {
      const fled = await client.extended({ sql: 'SELECT public.flee($1)', values: [what] });
      expect(fled.error).toBeNull();
      client.destroy();
      client = await world.login(pooler, world.alice);
      expect((await client.query(WHO)).rows).toEqual([who]);
      await client.query('BEGIN');
      await client.extended({ sql: 'SELECT public.flee($1)', values: [what] });
      await client.query('COMMIT');
      client.destroy();
      client = await world.login(pooler, world.alice);
      expect((await client.extended({ sql: WHO })).rows).toEqual([who]);
      // In a transaction that is left open, and in one whose answer nobody waits for.
      await client.query('BEGIN');
      await client.extended({ sql: 'SELECT public.flee($1)', values: [what] });
      client.destroy();
      client = await world.login(pooler, world.alice);
      expect((await client.query(WHO)).rows).toEqual([who]);
      client.send(P('', 'SELECT public.flee($1)'), B('', '', [what]), E(''), SYNC);
      client.destroy();
      client = await world.login(pooler, world.alice);
      expect((await client.query(WHO)).rows).toEqual([who]);
    });

    it('a function that becomes another role it may take does not reach the next client', async () => {
      await client.extended({ sql: 'SELECT public.flee($1)', values: ['SET ROLE none'] });
      await client.extended({ sql: 'SELECT public.flee($1)', values: [`SET ROLE ${world.bob}`] });
      client.destroy();
      client = await world.login(pooler, world.alice);
      expect((await client.query(WHO)).rows).toEqual([who]);
    });

    it('two roles never share a server connection', async () => {
      const bob = await world.login(pooler, world.bob);
      const ofAlice = await client.query(`${WHO}, pg_backend_pid()`);
      const ofBob = await bob.query(`${WHO}, pg_backend_pid()`);
      expect(ofBob.rows[0]?.slice(0, 2)).toEqual([world.service, world.bob]);
      expect(ofBob.rows[0]?.[2]).not.toBe(ofAlice.rows[0]?.[2]);
      bob.destroy();
    });

    it('the function call protocol reaches large objects and nothing else', async () => {
      const call = (oid: number, values: Buffer[]): Buffer => {
        const head = Buffer.alloc(10);
        head.writeUInt32BE(oid, 0);
        head.writeInt16BE(1, 4);
        head.writeInt16BE(1, 6);
        head.writeInt16BE(values.length, 8);
        const sized = values.flatMap((value) => {
          const length = Buffer.alloc(4);
          length.writeInt32BE(value.length);
          return [length, value];
        });
        return frame('F', Buffer.concat([head, ...sized, Buffer.from([0, 1])]));
      };
      const int = (value: number): Buffer => {
        const bytes = Buffer.alloc(4);
        bytes.writeInt32BE(value);
        return bytes;
      };
      await client.query('BEGIN');
      client.send(call(957, [int(0x60000)]));
      expect((await client.readReply()).types).toBe('VZ');
      client.send(call(177, [int(1), int(2)]));
      expect(await client.readReply()).toMatchObject({ types: 'EZ', status: 'E', error: { code: '42501' } });
      await client.query('ROLLBACK');
      client.send(call(177, [int(1), int(2)]));
      expect(await client.readReply()).toMatchObject({ types: 'EZ', status: 'I', error: { code: '42501' } });
      expect((await client.query(WHO)).rows).toEqual([who]);
    });
  });
}

describe('a static user whose login is the role', () => {
  it('may SET ROLE, keeps it on his connection, and the next client has his own again', async () => {
    const world = await makeWorld();
    await asSuperuser([`GRANT ${world.bob} TO ${world.alice}`]);
    const pooler = await world.pooler('static', { default_pool_size: 1 });
    try {
      const client = await world.login(pooler, world.alice);
      expect((await client.query(`SET ROLE ${world.bob}`)).error).toBeNull();
      expect((await client.query(WHO)).rows).toEqual([[world.alice, world.bob]]);
      expect((await client.query(WHO)).rows).toEqual([[world.alice, world.bob]]);
      client.destroy();
      const next = await world.login(pooler, world.alice);
      expect((await next.query(WHO)).rows).toEqual([[world.alice, world.alice]]);
      await next.query(`SET ROLE ${world.bob}`);
      await next.query('DISCARD ALL');
      expect((await next.query(WHO)).rows).toEqual([[world.alice, world.alice]]);
      next.destroy();
    } finally {
      await pooler.stop();
      await asSuperuser([`REVOKE ${world.bob} FROM ${world.alice}`]);
      await world.drop();
    }
  });
});
