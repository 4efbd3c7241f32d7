/** Clients that leave in every state, that are cancelled, and that wait too long: what becomes of their connection. */
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { COPY_DONE, FLUSH, SYNC, TERMINATE } from '../src/protocol/message-writer.ts';
import { makeCertificate } from '../test/support/certificates.ts';
import { asSuperuser } from '../test/support/postgres.ts';
import { frame, type LoginReply, ScriptedClient } from '../test/support/scripted-client.ts';
import { B, d, E, P, Q } from './support/conversation.ts';
import type { RunningPooler } from './support/pooler.ts';
import { makeWorld, type PoolKind, until, untilPoolsRest, type World } from './support/world.ts';

interface Leaving {
  readonly state: string;
  /** Brings the client into the state. */
  readonly enter: (client: ScriptedClient) => Promise<void> | void;
}

const INSERT = "INSERT INTO items VALUES (1000, 'left behind')";

const LEAVING: readonly Leaving[] = [
  { state: 'idle', enter: () => {} },
  { state: 'in a transaction', enter: async (client) => void (await client.query(`BEGIN; ${INSERT}`)) },
  {
    state: 'in a failed transaction',
    enter: async (client) => void (await client.query(`BEGIN; ${INSERT}; SELECT 1/0`)),
  },
  {
    state: 'in a transaction that holds locks',
    enter: async (client) => void (await client.query('BEGIN; LOCK TABLE items; SELECT pg_advisory_lock(1)')),
  },
  {
    state: 'while a statement runs',
    enter: async (client) => {
      client.sendQuery(`${INSERT}; SELECT pg_sleep(60)`);
      await running('pg_sleep(60)');
    },
  },
  {
    state: 'while a statement runs in a transaction, with more in the pipeline',
    enter: async (client) => {
      await client.query(`BEGIN; ${INSERT}`);
      client.send(Q('SELECT pg_sleep(61)'), Q('COMMIT'), P('', 'SELECT 1'), B('', ''), E(''), SYNC);
      await running('pg_sleep(61)');
    },
  },
  {
    state: 'in the middle of a result nobody reads',
    enter: async (client) => {
      client.pause();
      client.sendQuery("SELECT repeat('x', 10000) FROM generate_series(1, 100000)");
      await running('generate_series(1, 100000)');
    },
  },
  {
    state: 'in the middle of a result, by the extended protocol without Sync',
    enter: async (client) => {
      client.send(
        P('', "SELECT repeat('y', 10000) FROM generate_series(1, 100000)"),
        B('', ''),
        E(''),
        FLUSH,
      );
      await client.readFrame();
    },
  },
  {
    state: 'in COPY in',
    enter: async (client) => {
      client.send(Q('COPY items FROM STDIN'), d('1000\tleft behind\n'));
      await client.expect('G');
    },
  },
  {
    state: 'in COPY in by the extended protocol, with the Sync sent already',
    enter: async (client) => {
      client.send(P('', 'COPY items FROM STDIN'), B('', ''), E(''), SYNC, d('1000\tleft behind\n'));
      await client.expectTypes('12G');
    },
  },
  {
    state: 'in the middle of a CopyData message',
    enter: async (client) => {
      client.send(Q('COPY items FROM STDIN'));
      await client.expect('G');
      client.send(frame('d', `1000\t${'z'.repeat(100_000)}\n`).subarray(0, 60_000));
      await client.socket.writableNeedDrain;
    },
  },
  {
    state: 'in COPY out nobody reads',
    enter: async (client) => {
      client.pause();
      client.sendQuery("COPY (SELECT repeat('z', 10000) FROM generate_series(1, 100001)) TO STDOUT");
      await running('generate_series(1, 100001)');
    },
  },
  { state: 'in the middle of a Query message', enter: (client) => client.send(Q(INSERT).subarray(0, 20)) },
  {
    state: 'in the middle of a large Bind message',
    enter: async (client) => {
      const bind = B('', '', ['v'.repeat(200_000)]);
      client.send(P('', 'SELECT length($1)'), FLUSH);
      await client.expect('1');
      client.send(bind.subarray(0, 100_000));
    },
  },
  {
    state: 'with a Parse, Bind and Execute but no Sync',
    enter: async (client) => {
      client.send(P('', INSERT), B('', ''), E(''), FLUSH);
      await client.expectTypes('12C');
    },
  },
  {
    state: 'after an error whose Sync never came',
    enter: async (client) => {
      client.send(P('', INSERT), B('', ''), E(''), P('', 'SELEC'), FLUSH);
      await client.expectTypes('12CE');
    },
  },
  {
    state: 'with a temp table, a LISTEN, a lock and settings of his own',
    enter: async (client) => {
      await client.query('CREATE TEMP TABLE mine (i int); LISTEN channel; SELECT pg_advisory_lock(2)');
      await client.query("SET search_path = pg_catalog; SET work_mem = '5MB'; PREPARE p AS SELECT 1");
    },
  },
];

const CLEAN = `SELECT current_setting('search_path'), current_setting('work_mem'),
  (SELECT count(*) FROM pg_listening_channels()), to_regclass('pg_temp.mine') IS NULL,
  (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
  (SELECT count(*) FROM items), txid_current_if_assigned() IS NULL`;

let world: World;

/** Resolves when PostgreSQL runs a statement with this text. */
function running(text: string): Promise<void> {
  return until(async () => (await activity(text)) > 0, `PostgreSQL runs ${text}`);
}

async function activity(text: string): Promise<number> {
  const rows = await asSuperuser([
    `SELECT count(*)::int AS n FROM pg_stat_activity WHERE datname = '${world.database}' AND state <> 'idle'
       AND pid <> pg_backend_pid() AND position($$${text}$$ IN query) > 0`,
  ]);
  return rows[0]?.['n'] as number;
}

beforeAll(async () => {
  world = await makeWorld();
});
afterAll(() => world?.drop());

describe.each(['static', 'set_role'] as PoolKind[])('a client that leaves, %s', (kind) => {
  for (const mode of ['transaction', 'session']) {
    describe(`${mode} mode`, () => {
      let pooler: RunningPooler;
      let clean: (string | null)[];

      beforeAll(async () => {
        await world.reset();
        pooler = await world.pooler(kind, {
          pooler_mode: mode,
          default_pool_size: 1,
          checkout_timeout: 4_000,
        });
        const first = await world.login(pooler, world.alice);
        clean = (await first.query(CLEAN)).rows[0]!;
        await first.terminate();
      });
      afterAll(() => pooler?.stop());

      it.each(LEAVING.flatMap((leaving) => [[leaving.state, leaving] as const]))('%s', async (_, leaving) => {
        for (const how of ['breaks', 'ends', 'terminates']) {
          const client = await world.login(pooler, world.alice);
          await leaving.enter(client);
          if (how === 'breaks') client.socket.resetAndDestroy();
          else if (how === 'ends') client.end();
          else client.socket.end(TERMINATE);
          const next = await world.login(pooler, world.alice);
          const startedAtMs = performance.now();
          const reply = await next.query(CLEAN);
          expect(reply.error, how).toBeNull();
          expect(reply.rows[0], how).toEqual(clean);
          expect(performance.now() - startedAtMs, how).toBeLessThan(3_000);
          client.destroy();
          await next.terminate();
          await untilPoolsRest(pooler);
        }
      });
    });
  }

  it('a COPY that ended before the client left is there', async () => {
    await world.reset();
    const pooler = await world.pooler(kind, { default_pool_size: 1 });
    try {
      const client = await world.login(pooler, world.alice);
      client.send(Q('COPY items FROM STDIN'), d('1000\tstays\n'), COPY_DONE);
      await client.expect('G');
      expect((await client.readReply()).tags).toEqual(['COPY 1']);
      await client.terminate();
      const next = await world.login(pooler, world.alice);
      expect((await next.query('SELECT count(*) FROM items')).rows).toEqual([['4']]);
      next.destroy();
    } finally {
      await pooler.stop();
    }
  });
});

describe.each(['static', 'set_role'] as PoolKind[])('cancel requests, %s', (kind) => {
  let pooler: RunningPooler;
  const certificate = makeCertificate({ name: 'localhost' });
  beforeAll(async () => {
    await world.reset();
    pooler = await world.pooler(
      kind,
      { default_pool_size: 1, tls_certificate: 'server.crt', tls_private_key: 'server.key' },
      { files: { 'server.crt': certificate.cert, 'server.key': certificate.key } },
    );
  });
  afterAll(() => pooler?.stop());

  const enter = async (): Promise<{ client: ScriptedClient; key: LoginReply }> => {
    const client = await ScriptedClient.connect({ port: pooler.port });
    const password = kind === 'set_role' ? await world.issuer.token(world.alice) : '';
    const key = await client.login({ user: world.alice, database: world.database, password });
    return { client, key };
  };
  const cancel = async (processId: number, secret: Uint8Array, tls = false): Promise<void> => {
    const messenger = await ScriptedClient.connect({ port: pooler.port });
    if (tls) await messenger.requestTls();
    messenger.sendCancelRequest(processId, secret);
    await messenger.readToEnd();
  };

  it.each([false, true])('end the running statement of their session, over TLS: %s', async (tls) => {
    const { client, key } = await enter();
    client.sendQuery('SELECT pg_sleep(62)');
    await running('pg_sleep(62)');
    await cancel(key.processId, key.secretKey, tls);
    expect((await client.readReply()).error).toMatchObject({
      code: '57014',
      message: 'canceling statement due to user request',
    });
    expect((await client.query('SELECT 1')).rows).toEqual([['1']]);
    await client.terminate();
  });

  it('keys have random secrets, and a wrong one cancels nothing', async () => {
    const { client, key } = await enter();
    const other = await enter();
    expect(other.key.secretKey.equals(key.secretKey)).toBe(false);
    client.sendQuery('SELECT pg_sleep(0.3)');
    await running('pg_sleep(0.3)');
    const wrong = Buffer.from(key.secretKey);
    wrong[0] = (wrong[0] as number) ^ 1;
    await cancel(key.processId, wrong);
    await cancel(key.processId, Buffer.concat([key.secretKey, Buffer.from([0, 0, 0, 0])]));
    await cancel(key.processId + 1_000_000, key.secretKey);
    // The other session waits for the same server connection, so his own key hits nothing that runs.
    expect((await client.readReply()).error).toBeNull();
    await other.client.terminate();
    await client.terminate();
  });

  it('for an idle session are ignored', async () => {
    const { client, key } = await enter();
    await client.query('SELECT 1');
    await cancel(key.processId, key.secretKey);
    expect((await client.query('SELECT 2')).rows).toEqual([['2']]);
    await client.query('BEGIN');
    await cancel(key.processId, key.secretKey);
    expect((await client.query('SELECT 3')).rows).toEqual([['3']]);
    await client.query('COMMIT');
    await client.terminate();
  });

  it('for a session that waits for a connection end the waiting', async () => {
    const { client: holder } = await enter();
    const { client, key } = await enter();
    await holder.query('BEGIN');
    client.send(P('', 'SELECT 1'), B('', ''), E(''), SYNC, Q('SELECT 2'));
    await until(
      () => [...pooler.worker.view.sessions()].some((session) => session.state === 'waiting'),
      'one waits',
    );
    await cancel(key.processId, key.secretKey);
    expect((await client.readReply()).error?.code).toBe('57014');
    await holder.query('COMMIT');
    expect((await client.readReply()).rows).toEqual([['2']]);
    await holder.terminate();
    await client.terminate();
  });

  it('that come when the statement ends never hit the next client of the connection', async () => {
    const { client, key } = await enter();
    const { client: victim } = await enter();
    for (let round = 0; round < 25; round++) {
      client.sendQuery(`SELECT pg_sleep(${0.001 * (round % 5)})`);
      victim.sendQuery('SELECT pg_sleep(0.01)');
      await cancel(key.processId, key.secretKey);
      const own = await client.readReply();
      expect([undefined, '57014']).toContain(own.error?.code);
      expect((await victim.readReply()).error, `round ${round}`).toBeNull();
    }
    await client.terminate();
    await victim.terminate();
  });

  it('work inside a transaction and in COPY in', async () => {
    const { client, key } = await enter();
    await client.query('BEGIN');
    client.sendQuery('SELECT pg_sleep(63)');
    await running('pg_sleep(63)');
    await cancel(key.processId, key.secretKey);
    expect(await client.readReply()).toMatchObject({ status: 'E', error: { code: '57014' } });
    await client.query('ROLLBACK');
    client.send(Q('COPY items FROM STDIN'));
    await client.expect('G');
    await cancel(key.processId, key.secretKey);
    client.send(d('1000\tx\n'), COPY_DONE);
    expect((await client.readReply()).error?.code).toBe('57014');
    expect((await client.query('SELECT count(*) FROM items')).rows).toEqual([['3']]);
    await client.terminate();
  });
});

describe('patience that ends', () => {
  let pooler: RunningPooler;
  beforeAll(async () => {
    pooler = await world.pooler('static', {
      default_pool_size: 1,
      query_timeout: 400,
      client_idle_timeout: 700,
      client_idle_in_transaction_timeout: 300,
      rollback_timeout: 500,
    });
  });
  afterAll(() => pooler?.stop());
  let client: ScriptedClient;
  beforeEach(async () => {
    client = await world.login(pooler, world.alice);
  });

  it('query_timeout cancels the statement and the session goes on', async () => {
    const reply = await client.query('SELECT pg_sleep(30)');
    expect(reply.error?.code).toBe('57014');
    expect((await client.query('SELECT 1')).rows).toEqual([['1']]);
    await client.terminate();
  });

  it('client_idle_in_transaction_timeout ends the session and rolls back', async () => {
    await client.query(`BEGIN; ${INSERT}`);
    expect(await client.expectFatal()).toMatchObject({ severity: 'FATAL', code: '25P03' });
    const next = await world.login(pooler, world.alice);
    expect((await next.query('SELECT count(*) FROM items')).rows).toEqual([['3']]);
    await next.terminate();
  });

  it('client_idle_timeout ends an idle session', async () => {
    await client.query('SELECT 1');
    expect(await client.expectFatal()).toMatchObject({ severity: 'FATAL', code: '57P05' });
  });

  it('checkout_timeout refuses the request, not the session, and what follows in the pipeline is answered', async () => {
    client.destroy();
    const patient = await world.pooler('static', { default_pool_size: 1, checkout_timeout: 150 });
    client = await world.login(patient, world.alice);
    const waiting = await world.login(patient, world.alice);
    await client.query('BEGIN');
    waiting.send(P('', 'SELECT 1'), B('', ''), E(''), SYNC);
    expect(await waiting.readReply()).toMatchObject({ types: 'EZ', status: 'I', error: { code: '53300' } });
    waiting.sendQuery('SELECT 2');
    expect(await waiting.readReply()).toMatchObject({ types: 'EZ', status: 'I', error: { code: '53300' } });
    await client.query('COMMIT');
    expect((await waiting.query('SELECT 3')).rows).toEqual([['3']]);
    await waiting.terminate();
    await client.terminate();
    await patient.stop();
  });
});
