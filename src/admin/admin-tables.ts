/**
 * What the console shows, as tables: names, order and types of the columns are PgBouncer's 1.25 (exporters read
 * some of them by position), the values are read from sessions, pools and connections. It changes nothing, and of
 * keys and secrets it touches none.
 */
import type { ClientSession } from '../client/client-session.ts';
import { describeConfig } from '../config/describe.ts';
import type { Wire } from '../net/wire.ts';
import type { Pool } from '../server/pool.ts';
import { type ServerConnection, ServerState } from '../server/server-connection.ts';
import { PRODUCT_VERSION } from './product.ts';
import type { AdminView } from './snapshot.ts';
import { type Column, int4, type Row } from './table.ts';

/** One `SHOW name`. `rows` lists what there is when it is called, and reads each thing when its row is asked for. */
export interface AdminTable {
  readonly columns: readonly Column[];
  readonly help: string;
  rows(view: AdminView): IterableIterator<Row>;
}

const text = (...names: string[]): Column[] => names.map((name) => ({ name, type: 'text' }));
const ints = (...names: string[]): Column[] => names.map((name) => ({ name, type: 'int4' }));

/** CLIENTS and SERVERS have the same columns. */
const SOCKET_COLUMNS: readonly Column[] = [
  ...text('type', 'user', 'database', 'replication', 'state', 'addr'),
  ...ints('port'),
  ...text('local_addr'),
  ...ints('local_port'),
  ...text('connect_time', 'request_time'),
  ...ints('wait', 'wait_us', 'close_needed'),
  ...text('ptr', 'link'),
  ...ints('remote_pid'),
  ...text('tls', 'application_name'),
  ...ints('prepared_statements', 'id'),
];

const POOL_COLUMNS: readonly Column[] = [
  ...text('database', 'user'),
  ...ints('cl_active', 'cl_waiting', 'cl_active_cancel_req', 'cl_waiting_cancel_req'),
  ...ints(
    'sv_active',
    'sv_active_cancel',
    'sv_being_canceled',
    'sv_idle',
    'sv_used',
    'sv_tested',
    'sv_login',
  ),
  ...ints('maxwait', 'maxwait_us'),
  ...text('pool_mode', 'load_balance_hosts'),
];

const DATABASE_COLUMNS: readonly Column[] = [
  ...text('name', 'host'),
  ...ints('port'),
  ...text('database', 'force_user'),
  ...ints('pool_size', 'min_pool_size', 'reserve_pool_size', 'server_lifetime'),
  ...text('pool_mode', 'load_balance_hosts'),
  ...ints('max_connections', 'current_connections', 'max_client_connections', 'current_client_connections'),
  ...ints('paused', 'disabled'),
];

/** Every table by its name in SHOW, in the order of SHOW HELP. */
export const ADMIN_TABLES: ReadonlyMap<string, AdminTable> = new Map<string, AdminTable>([
  ['clients', { columns: SOCKET_COLUMNS, help: 'clients that are logged in', rows: clientRows }],
  [
    'config',
    { columns: text('key', 'value', 'default', 'changeable'), help: 'the settings', rows: configRows },
  ],
  ['databases', { columns: DATABASE_COLUMNS, help: 'the databases that can be entered', rows: databaseRows }],
  [
    'lists',
    { columns: [...text('list'), ...ints('items')], help: 'how many there are of what', rows: listRows },
  ],
  ['pools', { columns: POOL_COLUMNS, help: 'clients and connections by database and role', rows: poolRows }],
  ['servers', { columns: SOCKET_COLUMNS, help: 'connections to PostgreSQL', rows: serverRows }],
  ['version', { columns: text('version'), help: 'name and version of this program', rows: versionRows }],
]);

function* versionRows(): IterableIterator<Row> {
  yield [PRODUCT_VERSION];
}

function* configRows(view: AdminView): IterableIterator<Row> {
  // Nothing changes while the pooler runs: the files are read at its start.
  for (const { key, value, defaultValue } of describeConfig(view.config))
    yield [key, value, defaultValue, 'no'];
}

// ---- connections -----------------------------------------------------------------------------------------------

function* clientRows(view: AdminView): IterableIterator<Row> {
  const nowMs = view.clock.precise();
  const wallOffsetMs = Date.now() - nowMs;
  for (const session of [...view.sessions()]) {
    // Another turn of the event loop may have come between two rows.
    if (session.ended) continue;
    const { relay } = session;
    const waitMs = relay.waiting ? nowMs - relay.waitingSinceMs : 0;
    yield [
      'C',
      session.identity.role,
      session.databaseName,
      'none',
      session.state,
      ...addresses(relay.wire, 0),
      wallTime(session.connectedAtMs + wallOffsetMs),
      wallTime(relay.lastActivityMs + wallOffsetMs),
      ...secondsAndMicroseconds(waitMs),
      0,
      clientPointer(session),
      relay.server === null ? '' : serverPointer(relay.server),
      0,
      tlsText(relay.wire),
      relay.parameters.values.get('application_name') ?? '',
      int4(relay.preparedStatementCount),
      session.id,
    ];
  }
}

function* serverRows(view: AdminView): IterableIterator<Row> {
  const wallOffsetMs = Date.now() - view.clock.precise();
  const links = new Map<ServerConnection, ClientSession>();
  for (const session of view.sessions()) {
    if (session.relay.server !== null) links.set(session.relay.server, session);
  }
  const servers = [...view.pools.pools()].flatMap((pool) =>
    [...pool.servers()].map((server) => ({ pool, server })),
  );
  for (const { pool, server } of servers) {
    if (server.state === ServerState.Closed) continue;
    const session = links.get(server);
    const requestMs = server.requestStartedMs > 0 ? server.requestStartedMs : server.lastUsedMs;
    yield [
      'S',
      pool.options.role,
      pool.options.databaseName,
      'none',
      serverState(server),
      ...addresses(server.wire, pool.options.target.port),
      wallTime(server.connectedAtMs + wallOffsetMs),
      wallTime(requestMs + wallOffsetMs),
      0,
      0,
      server.retired ? 1 : 0,
      serverPointer(server),
      session === undefined ? '' : clientPointer(session),
      server.processId,
      tlsText(server.wire),
      server.parameters.values.get('application_name') ?? server.reported.get('application_name') ?? '',
      int4(server.statements.size),
      server.processId,
    ];
  }
}

function serverState(server: ServerConnection): string {
  if (server.state !== ServerState.Cleaning) return server.state;
  return server.cancelsInFlight > 0 ? 'being_canceled' : 'tested';
}

/** addr, port, local_addr, local_port. Both ends of a Unix socket are called `unix`; `unixPort` names the socket. */
function addresses(wire: Wire, unixPort: number): [string, number, string, number] {
  if (wire.remoteAddress === '') return ['unix', unixPort, 'unix', unixPort];
  return [wire.remoteAddress, wire.remotePort, wire.localAddress, wire.localPort];
}

function clientPointer(session: ClientSession): string {
  return `c${session.id}`;
}

/**
 * A name for a connection as long as it lives. The process id alone is not enough: connections to several hosts
 * may have the same one; the microsecond of the connect tells them apart.
 */
function serverPointer(server: ServerConnection): string {
  return `s${server.processId}-${Math.round(server.connectedAtMs * 1_000).toString(36)}`;
}

function tlsText(wire: Wire): string {
  const socket = wire.closed ? null : wire.tlsSocket;
  if (socket === null) return '';
  return `${socket.getProtocol() ?? 'unknown'}/${socket.getCipher()?.name ?? 'unknown'}`;
}

/** `2026-01-31 12:00:00 UTC`; `ms` since the epoch. */
function wallTime(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19).replace('T', ' ')} UTC`;
}

/** Whole seconds, and what is left of them in microseconds. */
function secondsAndMicroseconds(ms: number): [number, number] {
  const microseconds = Math.max(0, Math.round(ms * 1_000));
  return [int4(Math.floor(microseconds / 1_000_000)), microseconds % 1_000_000];
}

// ---- pools -----------------------------------------------------------------------------------------------------

/**
 * One row per database and user, also where several pools (hosts, ways to log in) serve them: exporters take the
 * two for a key and fail on a second row with the same one.
 */
function* poolRows(view: AdminView): IterableIterator<Row> {
  const nowMs = view.clock.precise();
  const groups = new Map<string, Pool[]>();
  for (const pool of view.pools.pools()) {
    const key = `${pool.options.databaseName}\0${pool.options.role}`;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [pool]);
    else group.push(pool);
  }
  const waitingSessions = new Map<Pool, number>();
  for (const { pool, relay } of view.sessions()) {
    if (relay.waiting) waitingSessions.set(pool, (waitingSessions.get(pool) ?? 0) + 1);
  }
  for (const group of groups.values()) {
    const first = group[0] as Pool;
    const sum = (count: (pool: Pool) => number): number =>
      int4(group.reduce((total, pool) => total + count(pool), 0));
    const cancels = sum((pool) => countServers(pool, (server) => server.cancelsInFlight));
    const beingCanceled = sum((pool) => countServers(pool, isBeingCanceled));
    yield [
      first.options.databaseName,
      first.options.role,
      sum((pool) => pool.sessions.size - (waitingSessions.get(pool) ?? 0)),
      sum((pool) => pool.waitingCount),
      cancels,
      // A cancel request goes out at once, so none ever waits.
      0,
      sum((pool) => pool.activeCount),
      cancels,
      beingCanceled,
      sum((pool) => pool.idleCount),
      0,
      sum((pool) => pool.cleaningCount) - beingCanceled,
      sum((pool) => pool.connectingCount),
      ...secondsAndMicroseconds(Math.max(...group.map((pool) => pool.maxWaitMs(nowMs)))),
      first.options.settings.mode,
      null,
    ];
  }
}

function countServers(pool: Pool, count: (server: ServerConnection) => number): number {
  let total = 0;
  for (const server of pool.servers()) total += count(server);
  return total;
}

function isBeingCanceled(server: ServerConnection): number {
  return server.state === ServerState.Cleaning && server.cancelsInFlight > 0 ? 1 : 0;
}

function* databaseRows(view: AdminView): IterableIterator<Row> {
  const { databases, general, turnstile } = view.config;
  const clients = new Map<string, number>();
  for (const { databaseName } of view.sessions())
    clients.set(databaseName, (clients.get(databaseName) ?? 0) + 1);
  const pools = [...view.pools.pools()];
  for (const row of databases) {
    const own = pools.filter(
      ({ options: { databaseName, target } }) =>
        databaseName === row.name &&
        target.host === row.host &&
        target.port === row.port &&
        target.database === row.databaseName,
    );
    yield [
      row.name,
      row.host,
      int4(row.port),
      row.databaseName,
      row.user,
      int4(row.poolSize ?? general.defaultPoolSize),
      int4(row.minPoolSize ?? general.minPoolSize),
      0,
      int4((row.serverLifetimeMs ?? general.serverLifetimeMs) / 1_000),
      row.poolerMode,
      null,
      int4(turnstile.maxServerConnectionsPerDatabase),
      int4(own.reduce((total, pool) => total + pool.serverCount, 0)),
      0,
      int4(clients.get(row.name) ?? 0),
      0,
      0,
    ];
  }
}

function* listRows(view: AdminView): IterableIterator<Row> {
  const { databases, users } = view.config;
  const pools = [...view.pools.pools()];
  const counts: [string, number][] = [
    ['databases', new Set(databases.map(({ name }) => name)).size],
    ['users', users.length],
    ['peers', 0],
    ['pools', pools.length],
    ['peer_pools', 0],
    // Free ones are PgBouncer's spare structures. Nothing is kept for later here.
    ['free_clients', 0],
    ['used_clients', [...view.sessions()].length],
    ['login_clients', view.loginCount],
    ['free_servers', 0],
    ['used_servers', pools.reduce((total, pool) => total + pool.serverCount + pool.connectingCount, 0)],
    ['dns_names', 0],
    ['dns_zones', 0],
    ['dns_queries', 0],
    ['dns_pending', 0],
  ];
  for (const [list, items] of counts) yield [list, int4(items)];
}
