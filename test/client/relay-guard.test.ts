/** The relay alone: what is refused for a guarded role, or cannot be judged, is so whatever pieces it comes in. */
import { expect, test } from 'vitest';
import { Clock } from '../../src/base/clock.ts';
import { Relay, TEXT_BYTES_MAX } from '../../src/client/relay.ts';
import type { Wire } from '../../src/net/wire.ts';
import { TxStatus } from '../../src/protocol/codes.ts';
import { encodeErrorResponse, encodeQuery, encodeReadyForQuery } from '../../src/protocol/message-writer.ts';
import { PgError } from '../../src/protocol/pg-error.ts';
import { ServerConnection } from '../../src/server/server-connection.ts';
import { ParameterSets } from '../../src/session/parameters.ts';
import { StatementRegistry } from '../../src/session/prepared-statements.ts';
import { StatementAnalyzer } from '../../src/sql/statement.ts';
import { frame } from '../support/scripted-client.ts';

class FakeWire {
  readonly #sent: Buffer[] = [];
  writeBlocked = false;
  write(bytes: Buffer): boolean {
    this.#sent.push(Buffer.from(bytes));
    return true;
  }
  get sent(): Buffer {
    return Buffer.concat(this.#sent);
  }
  writeView(bytes: Buffer): boolean {
    return this.write(bytes);
  }
  pause(): void {}
  resume(): void {}
  end(): void {}
  destroy(): void {}
  keepReadBuffer(): void {}
}

const analyzer = await StatementAnalyzer.load();

/** A session that is linked already, guarded but for a null role without token; `sent` is what PostgreSQL got. */
function guarded(
  guardedRole: string | null = 'alice',
  guardsClaims = false,
): {
  relay: Relay;
  server: ServerConnection;
  sent: () => Buffer;
} {
  const sets = new ParameterSets();
  const serverWire = new FakeWire();
  const server = new ServerConnection({
    openWire: () => serverWire as unknown as Wire,
    listener: { onServerClosed() {}, onSessionUser() {} },
    processId: 1,
    secretKey: Buffer.alloc(4),
    reported: new Map(),
    emptyParameters: sets.empty,
    preparedStatementsLimit: 10,
    nowMs: 0,
    retireAtMs: Number.POSITIVE_INFINITY,
  });
  const relay = new Relay({
    wire: new FakeWire() as unknown as Wire,
    host: {
      checkout: () => null,
      onServerIdle() {},
      link: () => true,
      contended: false,
      mustRest: () => false,
      guardedRole,
      onClientGone() {},
      onServerLost() {},
      verifyToken() {},
      refusalOf: () => null,
      renew() {},
    },
    clock: new Clock(),
    analyzer,
    registry: new StatementRegistry(),
    parameterSets: sets,
    parameters: sets.empty,
    mapNamed: true,
    mapUnnamed: false,
    guardedRole,
    guardsClaims,
    readOnly: false,
    claims: null,
    provenStatements: new WeakSet(),
  });
  relay.server = server;
  server.linked = relay;
  return { relay, server, sent: () => serverWire.sent };
}

/** FunctionCall of the function with this OID, long enough to be passed on in parts. */
function functionCall(oid: number): Buffer {
  const body = Buffer.alloc(20_000);
  body.writeUInt32BE(oid, 0);
  return frame('F', body);
}

const LO_OPEN = 952;
const SET_CONFIG = 2078;

test('a function that is not harmless is refused although the buffer still holds the OID of one that is', () => {
  for (let first = 5; first <= 9; first++) {
    const { relay, sent } = guarded();
    // The read buffer is shared and used again: behind the new bytes stand old ones.
    const buffer = Buffer.alloc(30_000);
    functionCall(LO_OPEN).copy(buffer);
    const bad = functionCall(SET_CONFIG);
    bad.copy(buffer, 0, 0, first);
    relay.onBytes(buffer, 0, first);
    relay.onBytes(bad, first, bad.length);
    expect([first, sent().includes(bad.subarray(5, 9))]).toEqual([first, false]);
  }
});

test('a session with a token that logs in as its role keeps its claims, whatever the form', () => {
  const call = functionCall(SET_CONFIG);
  const tooLong = encodeQuery(`SET request.jwt.claims = '' --${' '.repeat(TEXT_BYTES_MAX)}`);
  const claims = encodeQuery("SET request.jwt.claims = 'x'");
  for (const bytes of [call, tooLong, claims]) {
    const { relay, sent } = guarded(null, true);
    for (let at = 0; at < bytes.length && !relay.closed; at += 60_000) {
      relay.onBytes(bytes, at, Math.min(at + 60_000, bytes.length));
    }
    expect(sent().includes(bytes.subarray(5, 20))).toBe(false);
    expect(sent().toString('latin1')).toContain('refused by pgturnstile');
  }
  const role = encodeQuery('SET ROLE postgres');
  const { relay, sent } = guarded(null, true);
  relay.onBytes(role, 0, role.length);
  expect(sent().includes(role)).toBe(true);
});

test('a large-object function passes in whatever pieces it comes', () => {
  for (let first = 1; first <= 12; first++) {
    const { relay, sent } = guarded();
    const call = functionCall(LO_OPEN);
    relay.onBytes(call, 0, first);
    relay.onBytes(call, first, call.length);
    expect([first, sent().includes(call)]).toEqual([first, true]);
  }
});

test('an escape is refused wherever its text is cut', () => {
  const query = encodeQuery('SELECT 1; SET ROLE postgres');
  for (let first = 1; first < query.length; first++) {
    const { relay, sent } = guarded();
    relay.onBytes(query, 0, first);
    relay.onBytes(query, first, query.length);
    expect([first, sent().toString('latin1').includes('SET ROLE')]).toEqual([first, false]);
    expect(sent().toString('latin1')).toContain('refused by pgturnstile');
  }
});

test('a text too long to be read pins the session even when it fails: it may have committed before', () => {
  const { relay, server, sent } = guarded(null);
  const query = encodeQuery(`SET work_mem = 1; COMMIT; SELECT 1/0 --${' '.repeat(TEXT_BYTES_MAX)}`);
  const step = 60_000;
  for (let at = 0; at < query.length; at += step) {
    relay.onBytes(query, at, Math.min(at + step, query.length));
    expect(relay.closed).toBe(false);
  }
  expect(sent().equals(query)).toBe(true);
  const error = new PgError({ code: '22012', message: 'division by zero' });
  const answer = Buffer.concat([encodeErrorResponse(error), encodeReadyForQuery(TxStatus.Idle)]);
  server.onBytes(answer, 0, answer.length);
  expect([...(relay.effects.pins ?? [])]).toEqual(['settings that cannot be told']);
});
