/** The end of a pooler: idle sessions go, transactions finish, new ones are refused, and the deadline holds. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { asSuperuser } from '../test/support/postgres.ts';
import type { ScriptedClient } from '../test/support/scripted-client.ts';
import type { RunningPooler } from './support/pooler.ts';
import { makeWorld, type PoolKind, until, type World } from './support/world.ts';

describe.each(['static', 'set_role'] as PoolKind[])('draining, %s', (kind) => {
  let world: World;
  beforeAll(async () => {
    world = await makeWorld();
  });
  afterAll(() => world?.drop());

  const serverSessions = async (): Promise<number> => {
    const rows = await asSuperuser([
      `SELECT count(*)::int AS n FROM pg_stat_activity WHERE datname = '${world.database}'`,
    ]);
    return rows[0]?.['n'] as number;
  };
  const within = async (
    general: Record<string, number>,
    work: (pooler: RunningPooler) => Promise<void>,
  ): Promise<void> => {
    const pooler = await world.pooler(kind, general);
    try {
      await work(pooler);
    } finally {
      await pooler.stop();
    }
  };

  it('idle sessions are told 57P01, a transaction finishes, then nothing is left', async () => {
    await within({}, async (pooler) => {
      const idle = await world.login(pooler, world.alice);
      const busy = await world.login(pooler, world.alice);
      await busy.query("BEGIN; INSERT INTO items VALUES (2000, 'finished')");
      const drained = pooler.worker.drain();
      expect(await idle.expectFatal()).toMatchObject({ severity: 'FATAL', code: '57P01' });
      expect((await busy.query('SELECT 1')).rows).toEqual([['1']]);
      busy.sendQuery('COMMIT');
      expect((await busy.readReply()).tags).toEqual(['COMMIT']);
      expect(await busy.expectFatal()).toMatchObject({ code: '57P01' });
      await drained;
      await until(async () => (await serverSessions()) === 0, 'no connection to PostgreSQL is left');
      expect(
        await asSuperuser(['SELECT id FROM items WHERE id = 2000'], { database: world.database }),
      ).toHaveLength(1);
      await world.reset();
    });
  });

  it('nobody new gets in', async () => {
    await within({}, async (pooler) => {
      const busy = await world.login(pooler, world.alice);
      await busy.query('BEGIN');
      const drained = pooler.worker.drain();
      await expect(world.login(pooler, world.alice)).rejects.toThrow(/ECONNREFUSED|57P03/);
      busy.destroy();
      await drained;
    });
  });

  it('a statement that outlives shutdown_timeout is cancelled and its transaction rolled back', async () => {
    await within({ shutdown_timeout: 200 }, async (pooler) => {
      const busy = await world.login(pooler, world.alice);
      await busy.query("BEGIN; INSERT INTO items VALUES (2001, 'never')");
      busy.sendQuery('SELECT pg_sleep(68)');
      const startedAtMs = performance.now();
      await pooler.worker.drain();
      expect(performance.now() - startedAtMs).toBeLessThan(2_000);
      expect(await busy.expectFatal()).toMatchObject({ severity: 'FATAL', code: '57P01' });
      await until(async () => (await serverSessions()) === 0, 'no connection to PostgreSQL is left');
      expect(
        await asSuperuser(['SELECT id FROM items WHERE id = 2001'], { database: world.database }),
      ).toEqual([]);
    });
  });

  it('sessions that wait for a connection get it when they waited before', async () => {
    await within({ default_pool_size: 1 }, async (pooler) => {
      const holder = await world.login(pooler, world.alice);
      const waiter: ScriptedClient = await world.login(pooler, world.alice);
      await holder.query('BEGIN');
      waiter.sendQuery('SELECT 1');
      await until(
        () => [...pooler.worker.view.pools.pools()].some((pool) => pool.waitingCount === 1),
        'it waits',
      );
      const drained = pooler.worker.drain();
      await holder.query('COMMIT');
      const reply = await waiter.readReply();
      expect(reply.rows).toEqual([['1']]);
      expect(await waiter.expectFatal()).toMatchObject({ code: '57P01' });
      await holder.readToEnd();
      await drained;
    });
  });

  it('a pinned session that is idle ends too', async () => {
    await within({}, async (pooler) => {
      const pinned = await world.login(pooler, world.alice);
      await pinned.query('CREATE TEMP TABLE mine (i int)');
      const drained = pooler.worker.drain();
      expect(await pinned.expectFatal()).toMatchObject({ code: '57P01' });
      await drained;
    });
  });
});
