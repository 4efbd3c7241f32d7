/** A console on a real socket, over a pooler that is made up: what it shows is exactly what a test put there. */
import net from 'node:net';
import { AdminSession } from '../../src/admin/admin-session.ts';
import type { AdminView } from '../../src/admin/snapshot.ts';
import { Clock } from '../../src/base/clock.ts';
import type { ClientSession } from '../../src/client/client-session.ts';
import type { Config } from '../../src/config/config.ts';
import { Wire } from '../../src/net/wire.ts';
import type { Pool } from '../../src/server/pool.ts';
import type { PoolDirectory } from '../../src/server/pool-directory.ts';
import type { ServerConnection } from '../../src/server/server-connection.ts';
import { load } from '../config/support.ts';
import { ScriptedClient } from '../support/scripted-client.ts';

/** Two databases (one with a pool of its own size) and secrets in every place that may hold one. */
export function consoleConfig(): Config {
  const { config, faults } = load({
    main: [
      '[general]',
      'auth_type = "scram"',
      'default_pool_size = 7',
      'jwt_server_password = "secret-of-server"',
      '[turnstile]',
      'max_server_connections_per_database = 40',
      '[admin]',
      'password = "secret-of-admin"',
      '[[databases]]',
      'name = "app"',
      'host = "10.0.0.1"',
      'database_name = "app_on_server"',
      '[[databases]]',
      'name = "my-reports"',
      'host = "10.0.0.2"',
      'port = 6000',
      'user = "reporter"',
      'password = "secret-of-database"',
      'pool_size = 3',
      'pooler_mode = "session"',
      'server_lifetime = 60000',
    ].join('\n'),
    users: '[[users]]\nname = "alice"\npassword = "secret-of-alice"\ndatabase = "app"\n',
  });
  if (config === null) throw new Error(faults.join('\n'));
  return config;
}

/** Time that moves only when a test says so. */
export class StoppedClock extends Clock {
  override nowMs = 100_000;

  override precise(): number {
    return this.nowMs;
  }
}

const noWire = { closed: false, tlsSocket: null, remotePort: 0, localPort: 0 };

/** A connection to PostgreSQL, idle unless told otherwise. */
export function fakeServer(more: object = {}): ServerConnection {
  return {
    state: 'idle',
    processId: 4711,
    connectedAtMs: 90_000,
    lastUsedMs: 99_000,
    requestStartedMs: 0,
    retired: false,
    cancelsInFlight: 0,
    statements: { size: 0 },
    parameters: { values: new Map() },
    reported: new Map([['application_name', 'pgturnstile']]),
    secretKey: Buffer.from('secret-of-server-cancel'),
    wire: {
      ...noWire,
      remoteAddress: '10.0.0.1',
      remotePort: 5432,
      localAddress: '10.0.0.9',
      localPort: 40_001,
    },
    ...more,
  } as unknown as ServerConnection;
}

export interface FakePoolOptions {
  database?: string;
  role?: string;
  host?: string;
  servers?: ServerConnection[];
  sessions?: number;
  waitingCount?: number;
  maxWaitMs?: number;
  connectingCount?: number;
}

/** A pool whose counts follow from its servers. */
export function fakePool(given: FakePoolOptions = {}): Pool {
  const servers = given.servers ?? [];
  const count = (state: string): number => servers.filter((server) => server.state === state).length;
  return {
    options: {
      databaseName: given.database ?? 'app',
      role: given.role ?? 'alice',
      target: {
        host: given.host ?? '10.0.0.1',
        port: 5432,
        database: 'app_on_server',
        password: 'secret-of-target',
      },
      settings: { mode: 'transaction' },
    },
    sessions: new Set(Array.from({ length: given.sessions ?? 0 }, () => ({}))),
    servers: () => servers.values(),
    idleCount: count('idle'),
    activeCount: count('active'),
    cleaningCount: count('cleaning'),
    serverCount: servers.length,
    connectingCount: given.connectingCount ?? 0,
    waitingCount: given.waitingCount ?? 0,
    maxWaitMs: () => given.maxWaitMs ?? 0,
  } as unknown as Pool;
}

export interface FakeSessionOptions {
  id?: number;
  role?: string;
  database?: string;
  pool?: Pool;
  server?: ServerConnection | null;
  waitingSinceMs?: number;
  applicationName?: string;
  ended?: boolean;
  wire?: object;
}

export function fakeSession(given: FakeSessionOptions = {}): ClientSession {
  const waiting = given.waitingSinceMs !== undefined;
  const server = given.server ?? null;
  return {
    id: given.id ?? 1,
    identity: { role: given.role ?? 'alice' },
    databaseName: given.database ?? 'app',
    requestedUser: 'jwt',
    secretKey: Buffer.from('secret-of-client-cancel'),
    pool: given.pool ?? fakePool(),
    connectedAtMs: 40_000,
    ended: given.ended ?? false,
    state: waiting ? 'waiting' : server === null ? 'idle' : 'active',
    relay: {
      server,
      waiting,
      waitingSinceMs: given.waitingSinceMs ?? 0,
      lastActivityMs: 95_000,
      preparedStatementCount: 2,
      parameters: {
        values: new Map(
          given.applicationName === undefined ? [] : [['application_name', given.applicationName]],
        ),
      },
      wire: {
        ...noWire,
        remoteAddress: '192.0.2.7',
        remotePort: 50_123,
        localAddress: '192.0.2.1',
        localPort: 6432,
        ...given.wire,
      },
    },
  } as unknown as ClientSession;
}

/** What the console sees; fill in what the test needs. */
export class FakeView implements AdminView {
  readonly config: Config = consoleConfig();
  readonly clock: Clock;
  readonly startedAtMs = 0;
  loginCount = 3;
  poolList: Pool[] = [];
  sessionList: ClientSession[] = [];
  readonly reconnects: (string | null)[] = [];
  /** How often the sessions were listed. */
  listed = 0;

  constructor(clock: Clock = new StoppedClock()) {
    this.clock = clock;
  }

  get pools(): PoolDirectory {
    return { pools: () => this.poolList } as unknown as PoolDirectory;
  }

  sessions(): Iterable<ClientSession> {
    this.listed++;
    return this.sessionList;
  }

  reconnect(databaseName: string | null): void {
    this.reconnects.push(databaseName);
  }
}

/** Listens on 127.0.0.1 and gives a console to whoever sends a startup packet. */
export class ConsoleServer {
  readonly view: FakeView;
  readonly consoles: AdminSession[] = [];
  readonly wires: Wire[] = [];
  /** Calls of `onEnd`, one entry per console. */
  readonly ends: number[] = [];
  readonly #server: net.Server;
  readonly #clients: ScriptedClient[] = [];
  port = 0;

  constructor(view: FakeView = new FakeView()) {
    this.view = view;
    this.#server = net.createServer({ pauseOnConnect: true }, (socket) => this.#accept(socket));
  }

  async listen(): Promise<this> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve));
    this.port = (this.#server.address() as net.AddressInfo).port;
    return this;
  }

  async login(): Promise<ScriptedClient> {
    const client = await ScriptedClient.login({ port: this.port, user: 'root', database: 'admin' });
    this.#clients.push(client);
    return client;
  }

  close(): void {
    for (const client of this.#clients) client.destroy();
    for (const wire of this.wires) wire.destroy();
    this.#server.close();
  }

  #accept(socket: net.Socket): void {
    let startup = Buffer.alloc(0);
    const handler = {
      onBytes: (buffer: Buffer, start: number, end: number): void => {
        startup = Buffer.concat([startup, buffer.subarray(start, end)]);
        if (startup.length < 4 || startup.length < startup.readInt32BE(0)) return;
        this.#open(wire);
      },
      onDrain(): void {},
      onClose(): void {},
    };
    const wire = Wire.adopt(socket, handler, null);
    this.wires.push(wire);
  }

  #open(wire: Wire): void {
    const index = this.ends.push(0) - 1;
    const session = new AdminSession({
      wire,
      user: 'root',
      view: this.view,
      onEnd: () => {
        this.ends[index] = (this.ends[index] as number) + 1;
      },
    });
    this.consoles.push(session);
    session.start();
  }
}
