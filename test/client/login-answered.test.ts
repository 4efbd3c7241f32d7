/** Whoever proved who he is gets an answer, whatever becomes of the server connection that his login borrowed. */
import { afterEach, describe, expect, test } from 'vitest';
import { ScramKeys } from '../../src/auth/scram-keys.ts';
import { createLogger } from '../../src/base/log.ts';
import { openSession } from '../../src/client/session-opener.ts';
import {
  encodeBind,
  encodeErrorResponse,
  encodeExecute,
  encodeParse,
  encodeQuery,
  SYNC,
} from '../../src/protocol/message-writer.ts';
import { PgError } from '../../src/protocol/pg-error.ts';
import type { Pool, Waiter } from '../../src/server/pool.ts';
import { PoolDirectory } from '../../src/server/pool-directory.ts';
import { ParameterSets } from '../../src/session/parameters.ts';
import { startWorker, type Worker } from '../../src/worker.ts';
import { MiniPostgres } from '../support/mini-postgres.ts';
import { Random, seedOf } from '../support/random.ts';
import { ScriptedClient } from '../support/scripted-client.ts';
import type { ScriptedPeer } from '../support/scripted-server.ts';
import { TestWorker, testConfig, until } from '../support/worker.ts';

const after: (() => unknown)[] = [];
afterEach(async () => {
  for (const step of after.splice(0).reverse()) await step();
});

const SILENT = createLogger({ level: 'silent', format: 'json', destination: { write: () => {} } });

async function listen(options: Parameters<typeof MiniPostgres.listen>[0] = {}): Promise<MiniPostgres> {
  const mini = await MiniPostgres.listen(options);
  after.push(() => mini.close());
  return mini;
}

async function start(
  options: ConstructorParameters<typeof Object>[0] & { serverPort: number },
): Promise<TestWorker> {
  const pooler = await TestWorker.start(options);
  after.push(() => pooler.stop());
  return pooler;
}

/** Pools without a worker around them. */
function poolOf(port: number, log = SILENT): Pool {
  const directory = new PoolDirectory({
    config: testConfig({ serverPort: port }),
    scramKeys: new ScramKeys(),
    parameterSets: SETS,
    now: () => performance.now(),
    log,
  });
  after.push(() => directory.destroy());
  const user = testConfig({ serverPort: port }).users.find(({ name }) => name === 'alice') ?? null;
  const pool = directory.acquire(
    { role: 'alice', method: 'trust', user, readOnly: false, token: null },
    'app',
  );
  if (pool instanceof PgError) throw pool;
  return pool;
}

const SETS = new ParameterSets();
const STARTUP = {
  user: 'alice',
  database: 'app',
  settings: new Map<string, string>(),
} as unknown as Parameters<typeof openSession>[1];

/** Takes what it is given and does as told; never the owner of anything. */
function waiter(onCheckedOut: Waiter['onCheckedOut'], failed: (error: PgError) => void = () => {}): Waiter {
  return {
    waitingSinceMs: 0,
    sendingPart: false,
    onCheckedOut,
    onCheckoutFailed: failed,
    onServerBytes: () => true,
    onCommand: () => {},
    onCompleted: () => {},
    onNotCompleted: () => {},
    onError: () => null,
    onParameterStatus: () => true,
    onSkipping: () => {},
    onServerIdle: () => {},
    onReadyForQuery: () => true,
    onServerDrain: () => {},
    onServerLost: () => failed(new PgError({ code: '08006', message: 'lost' })),
  };
}

describe('logins that wait for the first connection of a pool', () => {
  test('are all answered, however many there are: they are served one after, not inside, the other', async () => {
    const mini = await listen();
    const pool = poolOf(mini.port);
    const COUNT = 20_000;
    let answered = 0;
    for (let index = 0; index < COUNT; index++) {
      openSession(pool, STARTUP, null, SETS, performance.now(), (opened) => {
        if (!(opened instanceof PgError)) answered++;
      });
    }
    expect(answered).toBe(0);
    await until(() => answered === COUNT, 'the answer to every login');
    expect([pool.waitingCount, pool.activeCount, pool.idleCount]).toEqual([0, 0, 1]);
  });

  test('do not suffer by one whose taking over fails: he is told, the next get a connection', async () => {
    const mini = await listen();
    const pool = poolOf(mini.port);
    const seen: string[] = [];
    pool.checkout(
      waiter(
        () => {
          throw new Error('fault of ours');
        },
        (error) => seen.push(`first ${error.code}`),
      ),
      performance.now(),
    );
    const second = waiter((server) => {
      seen.push('second');
      pool.release(server, null);
    });
    pool.checkout(second, performance.now());
    await until(() => seen.length === 2, 'both answers');
    expect(seen).toEqual(['first 08006', 'second']);
    expect([pool.waitingCount, pool.activeCount]).toEqual([0, 0]);
  });
});

describe('a login', () => {
  test('whose session cannot be made for a fault of ours is told so, and leaves nothing behind', async () => {
    const mini = await listen();
    let faults = 0;
    const logger = createLogger({
      level: 'info',
      format: 'json',
      destination: {
        write: (line: string) => {
          if (!line.includes('client logged in')) return;
          faults++;
          throw new Error('the disk is full');
        },
      },
    });
    const worker: Worker = await startWorker({ config: testConfig({ serverPort: mini.port }), log: logger });
    after.push(() => worker.destroy());
    // The first waits for a server connection, the second is answered in the same tick.
    for (let round = 1; round <= 2; round++) {
      const client = await ScriptedClient.connect({ port: worker.port });
      after.push(() => client.destroy());
      client.sendStartup({ user: 'alice', database: 'app' });
      const bytes = (await client.readToEnd()).toString('latin1');
      expect(bytes).toContain('SFATAL');
      expect(bytes).toContain('CXX000');
      expect(faults).toBe(round);
    }
    await until(() => [...worker.view.sessions()].length === 0, 'the end of the sessions');
    expect([...worker.view.pools.pools()].map((pool) => pool.activeCount)).toEqual([0]);
  });

  test('whose settings PostgreSQL never answers gives the connection up, so that others can come', async () => {
    let mute: ScriptedPeer | null = null;
    const mini = await listen({
      beforeLogin: async (peer, index) => {
        if (index === 0) mute = peer;
        return true;
      },
    });
    const pooler = await start({ serverPort: mini.port, general: 'connect_timeout = 300' });
    const first = await pooler.login();
    expect((await first.query('SELECT 1')).rows).toEqual([['SELECT 1']]);
    // From here on the backend reads nothing.
    (mute as unknown as ScriptedPeer).socket.pause();
    const client = await pooler.connect();
    client.sendStartup({ user: 'alice', database: 'app', work_mem: '5MB' });
    expect((await client.readToEnd(3_000)).toString('latin1')).toContain('FATAL');
    const next = await pooler.login();
    expect((await next.query('SELECT 2')).rows).toEqual([['SELECT 2']]);
  });
});

/** What a server does instead of a login, or in the middle of it. */
const LOGIN_FAULTS: ((peer: ScriptedPeer, random: Random) => Promise<boolean>)[] = [
  async () => false,
  async (peer) => {
    peer.socket.resetAndDestroy();
    return false;
  },
  async (peer) => {
    await peer.readStartup();
    peer.send(encodeErrorResponse(new PgError({ code: '57P03', message: 'starting', severity: 'FATAL' })));
    return false;
  },
  async (peer) => {
    await peer.readStartup();
    peer.send(encodeErrorResponse(new PgError({ code: '28P01', message: 'no', severity: 'FATAL' })));
    return false;
  },
  async (peer, random) => {
    await peer.readStartup();
    peer.send(random.bytes(40));
    return false;
  },
  async (peer) => {
    await peer.readStartup();
    peer.sendLoggedIn();
    return false;
  },
  // Says nothing until the other side has had enough.
  async (peer) => {
    await peer.readBytes(1_000_000).catch(() => null);
    return false;
  },
  async (_, random) => {
    await new Promise((resolve) => setTimeout(resolve, random.below(150)));
    return true;
  },
];

const seed = seedOf('LOGIN_SEED');

describe(`a server that fails at every step (seed ${seed})`, () => {
  test('leaves no login and no request without an answer, and no connection lost when it is well again', async () => {
    const random = new Random(seed);
    let ill = true;
    const mini = await listen({
      beforeLogin: async (peer) => {
        if (!ill || random.below(3) > 0) return true;
        return await random.pick(LOGIN_FAULTS)(peer, random);
      },
    });
    const pooler = await start({
      serverPort: mini.port,
      general:
        'default_pool_size = 3\ncheckout_timeout = 400\nconnect_timeout = 300\nrollback_timeout = 300\nquery_timeout = 700',
      turnstile: 'max_server_connections = 5',
    });
    const killer = setInterval(() => {
      const backend = mini.open.length === 0 ? undefined : random.pick(mini.open);
      if (random.below(2) === 0) backend?.peer.socket.destroy();
      // Deaf from here on: only deadlines end it.
      else if (random.below(4) === 0) backend?.peer.socket.pause();
    }, 15);
    after.push(() => clearInterval(killer));
    const unanswered: string[] = [];
    let welcomed = 0;
    const visit = async (): Promise<void> => {
      const client = await pooler.connect();
      client.sendStartup({
        user: random.pick(['alice', 'bob']),
        database: random.pick(['app', 'other']),
        ...random.pick<Record<string, string>>([
          {},
          { application_name: `a${random.below(3)}` },
          { work_mem: `${random.below(5)}MB` },
          { work_mem: 'invalid' },
        ]),
      });
      if (random.below(10) === 0) return client.destroy();
      if (!(await answered(client, 'login'))) return client.destroy();
      welcomed++;
      for (let count = random.below(4); count > 0; count--) {
        client.send(...random.pick(REQUESTS));
        if (random.below(10) === 0) break;
        if (!(await answered(client, 'request'))) break;
      }
      client.destroy();
    };
    /** True when ReadyForQuery came; false when the connection ended; noted when neither happens in time. */
    const answered = async (client: ScriptedClient, what: string): Promise<boolean> => {
      try {
        for (;;) if ((await client.readFrame(ANSWER_MS_MAX)).type === 'Z') return true;
      } catch (error) {
        if (!(error as Error).message.startsWith('the connection ended')) {
          unanswered.push(`${what}: ${(error as Error).message}`);
        }
        return false;
      }
    };
    const untilMs = performance.now() + 4_000;
    await Promise.all(
      Array.from({ length: 24 }, async () => {
        while (performance.now() < untilMs) await visit();
      }),
    );
    ill = false;
    clearInterval(killer);
    for (const { peer } of mini.open) if (peer.socket.isPaused()) peer.socket.destroy();
    expect(unanswered).toEqual([]);
    expect(welcomed).toBeGreaterThan(0);
    await until(
      () => pooler.busyCount === 0 && pooler.waitingCount === 0 && pooler.sessionCount === 0,
      'the rest of all pools',
      ANSWER_MS_MAX,
    );
    for (const user of ['alice', 'bob']) {
      for (const database of ['app', 'other']) {
        let rows: unknown[][] = [];
        await untilAsync(async () => {
          const client = await pooler.connect();
          try {
            await client.login({ user, database });
            rows = (await client.query('SELECT well')).rows;
            return rows.length > 0;
          } catch {
            return false;
          }
        }, `${user} at ${database}`);
        expect(rows).toEqual([['SELECT well']]);
      }
    }
  });
});

const REQUESTS: Buffer[][] = [
  [encodeQuery('SELECT 1')],
  [encodeQuery('BEGIN')],
  [encodeQuery('COMMIT')],
  [encodeQuery('ERROR 22012')],
  [encodeQuery('ROWS 200 500')],
  [encodeQuery("SET work_mem = '9MB'")],
  [encodeQuery('RESET ALL')],
  [encodeQuery('DISCARD ALL')],
  [encodeQuery('FATAL')],
  [encodeQuery('DIE')],
  [encodeParse('s', 'SELECT 1'), encodeBind('', 's', []), encodeExecute(''), SYNC],
  [encodeParse('', 'BAD'), encodeQuery('DEALLOCATE ALL'), SYNC],
  [encodeParse('t', 'BAD'), SYNC, encodeParse('t', 'SELECT 2'), SYNC],
  [encodeBind('', 's', []), encodeExecute(''), SYNC],
];
/** More than every deadline of the pooler in a row: connecting, waiting, rolling back, and some for the machine. */
const ANSWER_MS_MAX = 5_000;

/** As `until`; a pool that failed often backs off for up to five seconds. */
async function untilAsync(condition: () => Promise<boolean>, what: string): Promise<void> {
  const startedAtMs = performance.now();
  while (!(await condition())) {
    if (performance.now() - startedAtMs > 12_000) throw new Error(`${what} did not happen`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
