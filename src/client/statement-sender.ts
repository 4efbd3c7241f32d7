/**
 * Mapped statements on their way to a server connection: a Parse under our name where the connection does not hold
 * the statement, a Close where it holds too many or the plan went stale. It does not know the client's names.
 *
 * Hot: asked for every Bind, and mostly the statement is there.
 */
import { DescribeTarget, FrontendMessage } from '../protocol/codes.ts';
import { SYNC } from '../protocol/message-writer.ts';
import { ownBatch } from '../server/own-batch.ts';
import { PendingAction, PendingKind } from '../server/pending-responses.ts';
import type { ServerConnection } from '../server/server-connection.ts';
import type { ServerOwner } from '../server/server-owner.ts';
import type { PreparedStatement } from '../session/prepared-statements.ts';
import type { NameChange, StatementNames } from '../session/statement-names.ts';

/** Invariant: `#stale` is a statement that the connection holds and `server.statements` does not. */
export class StatementSender {
  readonly #owner: ServerOwner;
  readonly #names: StatementNames;
  readonly #provenStatements: WeakSet<object>;
  /** The statement whose plan went stale. */
  #stale: PreparedStatement | null;

  constructor(owner: ServerOwner, names: StatementNames, provenStatements: WeakSet<object>) {
    this.#owner = owner;
    this.#names = names;
    this.#provenStatements = provenStatements;
    this.#stale = null;
  }

  /** The connection holds the statement when what is sent next gets there; it then counts as used. */
  holds(server: ServerConnection, statement: PreparedStatement): boolean {
    const { statements } = server;
    return statements.use(statement) && !statements.inDoubt(statement, this.#names.request, true);
  }

  /** The same, and PostgreSQL has parsed its text: a Parse need not be sent to be sure of that. */
  holdsParsed(server: ServerConnection, statement: PreparedStatement): boolean {
    const { statements } = server;
    if (!statements.use(statement)) return false;
    return !statements.inDoubt(statement, this.#names.request, this.#provenStatements.has(statement));
  }

  /** The connection holds the statement when what is sent next gets there. */
  ensure(server: ServerConnection, statement: PreparedStatement): void {
    if (!this.holds(server, statement)) this.parse(server, statement, PendingAction.Quiet, statement);
  }

  /**
   * Sends Parse under our name, making room for it where the server holds too many. Where an earlier request may
   * have left the statement there or not, it is closed first: Close of what is not there is no error.
   */
  parse(
    server: ServerConnection,
    statement: PreparedStatement,
    action: PendingAction,
    change: NameChange | PreparedStatement,
  ): void {
    if (statement === this.#stale) {
      this.#stale = null;
      this.#close(server, statement);
    } else if (server.statements.inDoubt(statement, this.#names.request, false)) {
      this.#close(server, statement);
    }
    const evicted = server.statements.add(statement, this.#names.request, server.skippable);
    if (evicted !== null) this.#close(server, evicted);
    this.#sendParse(server, statement);
    server.expect(PendingKind.Parse, action, this.#owner, change);
  }

  /** Sends the Parse of a statement that the connection holds, so that PostgreSQL itself says what it says of it. */
  parseAnew(server: ServerConnection, statement: PreparedStatement, change: NameChange): void {
    this.#close(server, statement);
    this.parse(server, statement, PendingAction.Forward, change);
  }

  /** A Parse that PostgreSQL will refuse, because the transaction has failed: it says so itself. */
  parseDoomed(server: ServerConnection, statement: PreparedStatement): void {
    this.#sendParse(server, statement);
    server.expect(PendingKind.Parse, PendingAction.Forward, this.#owner, null);
  }

  /** The statement cannot be used on this connection any more, and comes back with a new plan. */
  onStale(server: ServerConnection, statement: PreparedStatement): void {
    server.statements.delete(statement);
    this.#stale = statement;
  }

  /**
   * The failed request is over. `sendingPart`: the client's next message is half sent; `again`: the request is
   * about to go out a second time.
   */
  closeStale(server: ServerConnection, sendingPart: boolean, again: boolean): void {
    const stale = this.#stale;
    if (stale === null) return;
    if (sendingPart) {
      // Nothing may be put into the client's message; the statement goes with the connection.
      server.retired = true;
      return;
    }
    this.#close(server, stale);
    this.#stale = null;
    if (again) return;
    const batch = ownBatch(() => {});
    server.send(SYNC);
    server.expect(PendingKind.Sync, PendingAction.Own, null, batch);
    server.flush();
  }

  #sendParse(server: ServerConnection, statement: PreparedStatement): void {
    server.sendByte(FrontendMessage.Parse);
    server.sendInt32(4 + statement.serverNameBytes.length + statement.parseTail.length);
    server.send(statement.serverNameBytes);
    server.send(statement.parseTail);
  }

  #close(server: ServerConnection, statement: PreparedStatement): void {
    server.statements.remove(statement, this.#names.request, server.skippable);
    server.sendByte(FrontendMessage.Close);
    server.sendInt32(5 + statement.serverNameBytes.length);
    server.sendByte(DescribeTarget.Statement);
    server.send(statement.serverNameBytes);
    server.expect(PendingKind.Close, PendingAction.Quiet, this.#owner, statement);
  }
}
