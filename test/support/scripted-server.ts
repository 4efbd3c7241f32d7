/**
 * A fake PostgreSQL for tests: listens on 127.0.0.1 (or a Unix socket) and runs one script per connection. A
 * script reads and writes through a ScriptedPeer, step by step. A script that fails makes `close()` reject, so a
 * test cannot overlook it. Nothing here decides what a correct server does: the script says it.
 */
import { once } from 'node:events';
import net from 'node:net';
import tls from 'node:tls';
import { ProtocolVersion, RequestCode, TxStatus } from '../../src/protocol/codes.ts';
import {
  BIND_COMPLETE,
  encodeAuthenticationOk,
  encodeBackendKeyData,
  encodeCommandComplete,
  encodeDataRow,
  encodeParameterStatus,
  encodeReadyForQuery,
  PARSE_COMPLETE,
} from '../../src/protocol/message-writer.ts';

/** Runs one connection; the socket is destroyed when it returns or throws. */
export type Script = (peer: ScriptedPeer) => Promise<void>;

export interface Frame {
  /** The type as a character, e.g. 'Q'. */
  readonly type: string;
  readonly body: Buffer;
}

export interface ScriptedLogin {
  /** ParameterStatus values on top of the usual ones. */
  parameters?: Record<string, string>;
  processId?: number;
  secretKey?: Buffer;
}

export interface RoleRow {
  name: string;
  superuser?: boolean;
  bypassRls?: boolean;
  replication?: boolean;
  createRole?: boolean;
  canLogin?: boolean;
  /** Whole seconds since the epoch. */
  validUntil?: string | null;
  inLoginGroup?: boolean;
  maySetRole?: boolean;
}

/** One accepted connection. Every read rejects when the other side goes away first. */
export class ScriptedPeer {
  #socket: net.Socket;
  #buffer: Buffer = Buffer.alloc(0);
  #ended = false;
  #wake: (() => void) | null = null;
  /** 0 for the first connection of the server. */
  readonly index: number;
  readonly #onData = (chunk: Buffer): void => {
    this.#buffer = this.#buffer.length === 0 ? chunk : Buffer.concat([this.#buffer, chunk]);
    this.#wake?.();
  };
  readonly #onEnd = (): void => {
    this.#ended = true;
    this.#wake?.();
  };

  constructor(socket: net.Socket, index: number) {
    this.index = index;
    this.#socket = socket;
    this.#listen();
  }

  get socket(): net.Socket {
    return this.#socket;
  }

  /** The next `count` bytes, whatever they are. */
  async readBytes(count: number): Promise<Buffer> {
    while (this.#buffer.length < count) {
      if (this.#ended)
        throw new Error(`the peer left; ${count} bytes were wanted, ${this.#buffer.length} came`);
      await this.#more();
    }
    const bytes = this.#buffer.subarray(0, count);
    this.#buffer = this.#buffer.subarray(count);
    return bytes;
  }

  /** Puts bytes back in front of what is to be read. */
  unread(bytes: Buffer): void {
    this.#buffer = Buffer.concat([bytes, this.#buffer]);
  }

  /** A message with a type. */
  async readFrame(): Promise<Frame> {
    const header = await this.readBytes(5);
    const body = await this.readBytes(header.readInt32BE(1) - 4);
    return { type: String.fromCharCode(header[0]!), body };
  }

  /** The next message's body; throws when it has another type. */
  async expect(type: string): Promise<Buffer> {
    const frame = await this.readFrame();
    if (frame.type !== type) throw new Error(`expected a message '${type}', got '${frame.type}'`);
    return frame.body;
  }

  /** All messages up to and including Sync ('S') or Query ('Q'). */
  async readRequest(): Promise<Frame[]> {
    const frames: Frame[] = [];
    for (;;) {
      const frame = await this.readFrame();
      frames.push(frame);
      if (frame.type === 'S' || frame.type === 'Q') return frames;
    }
  }

  /** A packet without a type: its code (protocol version or request code) and what follows. */
  async readStartupLike(): Promise<{ code: number; body: Buffer }> {
    const length = (await this.readBytes(4)).readInt32BE(0);
    const packet = await this.readBytes(length - 4);
    return { code: packet.readInt32BE(0), body: packet.subarray(4) };
  }

  /** The startup packet's parameters; throws when the packet is anything but protocol 3.0. */
  async readStartup(): Promise<Record<string, string>> {
    const { code, body } = await this.readStartupLike();
    if (code !== ProtocolVersion.V3_0) throw new Error(`expected a startup packet, got code ${code}`);
    const words = body.toString().split('\0');
    const parameters: Record<string, string> = {};
    for (let at = 0; words[at] !== ''; at += 2) parameters[words[at]!] = words[at + 1]!;
    return parameters;
  }

  send(...parts: (Buffer | string)[]): void {
    this.#socket.write(
      Buffer.concat(parts.map((part) => (typeof part === 'string' ? Buffer.from(part) : part))),
    );
  }

  /** The same bytes in pieces of `size`, each a write of its own in its own turn of the event loop. */
  async sendInPieces(bytes: Buffer, size = 1): Promise<void> {
    for (let at = 0; at < bytes.length; at += size) {
      this.#socket.write(bytes.subarray(at, at + size));
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  /** Goes on over TLS, as the server. Send 'S' before. */
  async startTls(
    certificate: tls.SecureContextOptions,
    options: tls.TLSSocketOptions = {},
  ): Promise<tls.TLSSocket> {
    const raw = this.#socket;
    raw.off('data', this.#onData).off('end', this.#onEnd).off('close', this.#onEnd);
    raw.pause();
    const secureContext = tls.createSecureContext(certificate);
    const secured = new tls.TLSSocket(raw, { isServer: true, secureContext, ...options });
    this.#socket = secured;
    this.#listen();
    await Promise.race([
      once(secured, 'secure'),
      once(secured, 'close').then(() => Promise.reject(new Error('the TLS handshake failed'))),
    ]);
    return secured;
  }

  /** Answers SSLRequest with `answer`; throws when something else came. */
  async answerSslRequest(answer: string): Promise<void> {
    const { code } = await this.readStartupLike();
    if (code !== RequestCode.SSLRequest) throw new Error(`expected SSLRequest, got code ${code}`);
    this.send(answer);
  }

  /** What follows a proof: AuthenticationOk, the usual ParameterStatus, BackendKeyData, ReadyForQuery. */
  sendLoggedIn(login: ScriptedLogin = {}): void {
    const parameters = {
      server_version: '15.7',
      server_encoding: 'UTF8',
      client_encoding: 'UTF8',
      standard_conforming_strings: 'on',
      ...login.parameters,
    };
    this.send(
      encodeAuthenticationOk(),
      ...Object.entries(parameters).map(([name, value]) => encodeParameterStatus(name, value)),
      encodeBackendKeyData(login.processId ?? 4711, login.secretKey ?? Buffer.from('5ec4e701', 'hex')),
      encodeReadyForQuery(TxStatus.Idle),
    );
  }

  /** Answers the question of pgturnstile's own login, who it is now, with these rows. Returns the request. */
  async answerIdentity(sessionUser: string, currentUser: string, roles: RoleRow[]): Promise<Frame[]> {
    const request = await this.readRequest();
    const parses = request.filter((frame) => frame.type === 'P').length;
    const reply: Buffer[] = [];
    if (parses === 2) {
      reply.push(
        PARSE_COMPLETE,
        BIND_COMPLETE,
        encodeDataRow([currentUser]),
        encodeCommandComplete('SELECT 1'),
      );
    }
    reply.push(PARSE_COMPLETE, BIND_COMPLETE);
    for (const role of roles) reply.push(encodeDataRow(identityRow(sessionUser, currentUser, role)));
    reply.push(encodeCommandComplete(`SELECT ${roles.length}`), encodeReadyForQuery(TxStatus.Idle));
    this.send(...reply);
    return request;
  }

  /** A whole login by trust, up to the quiet connection; returns the startup parameters. */
  async acceptLogin(login: ScriptedLogin & { role?: string } = {}): Promise<Record<string, string>> {
    const startup = await this.readStartup();
    this.sendLoggedIn(login);
    const user = startup['user']!;
    const role = login.role ?? user;
    const rows = role === user ? [{ name: user }] : [{ name: user }, { name: role }];
    await this.answerIdentity(user, role, rows);
    return startup;
  }

  /** Resolves once the other side has closed or broken the connection; bytes before that are thrown away. */
  async untilClosed(): Promise<void> {
    while (!this.#ended) {
      this.#buffer = Buffer.alloc(0);
      await this.#more();
    }
  }

  /** Sends what is pending, then FIN. */
  end(): void {
    this.#socket.end();
  }

  /** Breaks the connection with RST where the socket can. */
  reset(): void {
    this.#socket.resetAndDestroy();
  }

  #listen(): void {
    this.#socket.on('data', this.#onData).on('end', this.#onEnd).on('close', this.#onEnd);
    // A broken connection shows as 'close' too.
    this.#socket.on('error', () => {});
    this.#socket.resume();
  }

  async #more(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
    this.#wake = null;
  }
}

function identityRow(sessionUser: string, currentUser: string, role: RoleRow): (string | null)[] {
  const flag = (value: boolean | undefined): string => (value ? 't' : 'f');
  return [
    sessionUser,
    currentUser,
    role.name,
    flag(role.superuser),
    flag(role.bypassRls),
    flag(role.replication),
    flag(role.createRole),
    flag(role.canLogin ?? true),
    role.validUntil ?? null,
    flag(role.inLoginGroup),
    flag(role.maySetRole),
  ];
}

/** Invariant: every script's end is awaited by `close()`, which rejects with the first failure. */
export class ScriptedServer {
  readonly #server: net.Server;
  readonly #sockets = new Set<net.Socket>();
  readonly #runs: Promise<void>[] = [];
  readonly #failures: Error[] = [];
  #closing = false;

  private constructor(server: net.Server) {
    this.#server = server;
  }

  /** Listens on a free port of 127.0.0.1, or at `path`. The last script serves all further connections too. */
  static async listen(scripts: Script | Script[], path?: string): Promise<ScriptedServer> {
    const list = Array.isArray(scripts) ? scripts : [scripts];
    const server = net.createServer({ noDelay: true });
    const scripted = new ScriptedServer(server);
    let index = 0;
    server.on('connection', (socket) => {
      const script = list[Math.min(index, list.length - 1)]!;
      scripted.#runs.push(scripted.#run(script, new ScriptedPeer(socket, index++), socket));
    });
    if (path === undefined) server.listen(0, '127.0.0.1');
    else server.listen(path);
    await once(server, 'listening');
    return scripted;
  }

  get port(): number {
    return (this.#server.address() as net.AddressInfo).port;
  }

  /** Connections accepted so far. */
  get connectionCount(): number {
    return this.#runs.length;
  }

  /** Stops listening, breaks what is open, waits for all scripts; rejects when one failed before this call. */
  async close(): Promise<void> {
    // A script is given the chance to see the end of a connection that the test itself just closed.
    await new Promise((resolve) => setImmediate(resolve));
    this.#closing = true;
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
    await Promise.all(this.#runs);
    if (this.#failures.length > 0) throw this.#failures[0]!;
  }

  /** Waits until every script so far has come to its own end, then closes. */
  async finished(): Promise<void> {
    await Promise.all(this.#runs);
    await this.close();
  }

  async #run(script: Script, peer: ScriptedPeer, socket: net.Socket): Promise<void> {
    this.#sockets.add(socket);
    try {
      await script(peer);
    } catch (error) {
      if (!this.#closing) this.#failures.push(error as Error);
    } finally {
      peer.socket.destroySoon();
      socket.once('close', () => this.#sockets.delete(socket));
    }
  }
}
