/**
 * One question about roles on a connection borrowed from a pool, with an end in sight: it waits a moment for the
 * connection and a moment for the answer, and then does without. It knows nothing of what the answer is for.
 */
import type { RoleAttributes } from '../auth/role-policy.ts';
import type { ErrorFields } from '../protocol/backend-messages.ts';
import type { PgError } from '../protocol/pg-error.ts';
import { type ParameterSet, parameterDifference } from '../session/parameters.ts';
import { ownBatch, sendParameters, sendReadRoles } from './own-batch.ts';
import type { Pool, Waiter } from './pool.ts';
import { readRoleRow } from './role-facts.ts';
import type { ServerConnection } from './server-connection.ts';

/** The roles that exist; or why it is not known which do. */
export type RoleAnswer =
  | { readonly roles: ReadonlyMap<string, RoleAttributes>; readonly failure: null }
  | { readonly roles: null; readonly failure: 'busy' | 'timeout' | 'error'; readonly code: string };

export interface RoleLookupOptions {
  readonly pool: Pool;
  readonly names: readonly string[];
  readonly loginGroup: string | null;
  readonly emptyParameters: ParameterSet;
  /** Called once, possibly before `start` returns. */
  readonly done: (answer: RoleAnswer) => void;
}

/** Invariant: the connection, once lent, is given back or closed whatever PostgreSQL does. */
export class RoleLookup implements Waiter {
  waitingSinceMs = 0;
  readonly sendingPart: boolean = false;
  readonly #options: RoleLookupOptions;
  readonly #roles = new Map<string, RoleAttributes>();
  #deadlineMs = Number.POSITIVE_INFINITY;
  #server: ServerConnection | null = null;
  #malformed = false;
  #over = false;

  constructor(options: RoleLookupOptions) {
    this.#options = options;
  }

  start(nowMs: number): void {
    this.#deadlineMs = nowMs + WAIT_MS_MAX;
    const server = this.#options.pool.checkout(this, nowMs);
    if (server === null) return;
    if ('severity' in server) this.onCheckoutFailed(server);
    else this.onCheckedOut(server);
  }

  /** The janitor's visit. */
  tick(nowMs: number): void {
    if (this.#over || nowMs < this.#deadlineMs) return;
    if (this.#server === null) {
      this.#options.pool.cancelWait(this);
      this.#finish({ roles: null, failure: 'busy', code: '' });
    } else {
      this.#finish({ roles: null, failure: 'timeout', code: '' });
      this.#server.close('a question about roles was not answered');
    }
  }

  // ---- Waiter ----------------------------------------------------------------------------------------------

  onCheckedOut(server: ServerConnection): void {
    const { names, loginGroup, emptyParameters, pool } = this.#options;
    this.#server = server;
    this.#deadlineMs = server.lastUsedMs + ANSWER_MS_MAX;
    // A statement_timeout or the like that its last client chose must not decide what is known of roles.
    const difference = parameterDifference(server.parameters, emptyParameters);
    if (difference !== null) {
      server.parameters = emptyParameters;
      const batch = ownBatch((error) => {
        if (error !== null && !server.closed) server.close('settings were refused');
      });
      sendParameters(server, difference.names, difference.values, batch);
    }
    const batch = ownBatch(
      (error) => {
        this.#server = null;
        if (!server.closed) {
          server.linked = null;
          pool.release(server, null);
        }
        this.#onAnswered(error);
      },
      (row) => this.#onRow(row),
    );
    sendReadRoles(server, names, loginGroup, batch);
    server.flush();
  }

  onCheckoutFailed(error: PgError): void {
    this.#finish({ roles: null, failure: 'error', code: error.code });
  }

  #onRow(row: readonly (string | null)[]): void {
    const read = readRoleRow(row, this.#options.loginGroup !== null);
    if (read === null) this.#malformed = true;
    else this.#roles.set(read[0], read[1]);
  }

  #onAnswered(error: ErrorFields | null): void {
    if (error !== null) this.#finish({ roles: null, failure: 'error', code: error.get('C') ?? '' });
    else if (this.#malformed) this.#finish({ roles: null, failure: 'error', code: 'malformed' });
    else this.#finish({ roles: this.#roles, failure: null });
  }

  #finish(answer: RoleAnswer): void {
    if (this.#over) return;
    this.#over = true;
    this.#options.done(answer);
  }

  // Nothing of a client's travels here.
  onServerBytes(): boolean {
    return true;
  }
  onCommand(): void {}
  onCompleted(): void {}
  onNotCompleted(): void {}
  onError(): Buffer | null {
    return null;
  }
  onParameterStatus(): boolean {
    return true;
  }
  onSkipping(): void {}
  onServerIdle(): void {}
  onReadyForQuery(): boolean {
    return true;
  }
  onServerDrain(): void {}
  onServerLost(): void {
    this.#server = null;
    this.#finish({ roles: null, failure: 'error', code: '08006' });
  }
}

/** For a connection, and for its answer. */
const WAIT_MS_MAX = 1_000;
const ANSWER_MS_MAX = 5_000;
