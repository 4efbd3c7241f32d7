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
import type { NameChange } from '../session/statement-names.ts';

/** Invariant: `#stale` is a statement that the connection holds and `server.statements` does not. */
export class StatementSender {
  readonly #owner: ServerOwner;
  /** The statement whose plan went stale. */
  #stale: PreparedStatement | null;

  constructor(owner: ServerOwner) {
    this.#owner = owner;
    this.#stale = null;
  }

  /** The connection holds the statement when what is sent next gets there. */
  ensure(server: ServerConnection, statement: PreparedStatement): void {
    if (!server.statements.use(statement)) this.parse(server, statement, PendingAction.Quiet, statement);
  }

  /** Sends Parse under our name, making room for it where the server holds too many. */
  parse(
    server: ServerConnection,
    statement: PreparedStatement,
    action: PendingAction,
    change: NameChange | PreparedStatement,
  ): void {
    if (statement === this.#stale) {
      this.#stale = null;
      this.#close(server, statement);
    }
    const evicted = server.statements.add(statement);
    if (evicted !== null) this.#close(server, evicted);
    this.#sendParse(server, statement);
    server.expect(PendingKind.Parse, action, this.#owner, change);
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
    server.sendByte(FrontendMessage.Close);
    server.sendInt32(5 + statement.serverNameBytes.length);
    server.sendByte(DescribeTarget.Statement);
    server.send(statement.serverNameBytes);
    server.expect(PendingKind.Close, PendingAction.Quiet, this.#owner, statement);
  }
}
