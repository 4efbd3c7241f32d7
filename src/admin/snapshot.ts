/** What the console may see and do; the worker implements it. */
import type { Clock } from '../base/clock.ts';
import type { ClientSession } from '../client/client-session.ts';
import type { Config } from '../config/config.ts';
import type { PoolDirectory } from '../server/pool-directory.ts';

export interface AdminView {
  readonly config: Config;
  readonly clock: Clock;
  readonly pools: PoolDirectory;
  /** Milliseconds since the epoch. */
  readonly startedAtMs: number;
  /** Connections that have not finished their login. */
  readonly loginCount: number;
  sessions(): Iterable<ClientSession>;
  /** New server connections for one database, or for all of them. */
  reconnect(databaseName: string | null): void;
}
