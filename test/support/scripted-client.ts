/**
 * A raw-protocol client for tests: it sends exactly the bytes it is told to and reads frames with their types.
 * Reads wait with a deadline, so a test that waits for a message that never comes fails by name, not by timeout.
 * It checks nothing of what a correct client would do; `login` is the one shortcut.
 */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import net from 'node:net';
import tls from 'node:tls';
import {
  decodeAuthentication,
  decodeCommandComplete,
  decodeDataRow,
  decodeErrorFields,
  decodeParameterStatus,
  decodeRowDescription,
} from '../../src/protocol/backend-messages.ts';
import { RequestCode } from '../../src/protocol/codes.ts';
import {
  encodeBind,
  encodeCancelRequest,
  encodeClose,
  encodeDescribe,
  encodeExecute,
  encodeParse,
  encodePassword,
  encodeQuery,
  encodeSASLInitialResponse,
  encodeSASLResponse,
  encodeStartup,
  SSL_REQUEST,
  SYNC,
  TERMINATE,
} from '../../src/protocol/message-writer.ts';
import { ScramClient } from './scram-client.ts';

const READ_TIMEOUT_MS = 5_000;

/** A message from the pooler. */
export interface ReceivedFrame {
  /** The type as a character, e.g. 'Z'. */
  readonly type: string;
  /** A copy, without type and length. */
  readonly body: Buffer;
}

export interface ReceivedError {
  readonly severity: string;
  readonly code: string;
  readonly message: string;
  readonly detail: string | undefined;
  readonly hint: string | undefined;
}

/** What came back for one request, up to and including ReadyForQuery. */
export interface Reply {
  /** The types in order, e.g. 'TDCZ'. */
  readonly types: string;
  readonly frames: ReceivedFrame[];
  /** Text values of all DataRows. */
  readonly rows: (string | null)[][];
  /** Column names of the last RowDescription. */
  readonly columns: string[];
  /** Command tags in order. */
  readonly tags: string[];
  /** The first ErrorResponse. */
  readonly error: ReceivedError | null;
  readonly notices: ReceivedError[];
  /** 'I', 'T' or 'E'. */
  readonly status: string;
}

export interface ConnectOptions {
  port: number;
  /** Default 127.0.0.1. */
  host?: string;
  /** Address to come from, e.g. another one of 127.0.0.0/8. */
  localAddress?: string;
}

export interface LoginOptions {
  user: string;
  database?: string;
  password?: string;
  /** Further startup parameters. */
  parameters?: Record<string, string>;
  /** The version number as it stands on the wire; default 3.0. */
  protocol?: number;
}

/** What a successful login told. */
export interface LoginReply {
  readonly parameters: Map<string, string>;
  readonly processId: number;
  readonly secretKey: Buffer;
  readonly status: string;
}

/** One query of the extended protocol for `ScriptedClient.extended`. */
export interface ExtendedQuery {
  sql: string;
  values?: (string | null)[];
  /** Name of the prepared statement; default the unnamed one. */
  statement?: string;
  /** Send no Parse: the statement exists already. */
  prepared?: boolean;
  maxRows?: number;
}

export class ScriptedClient {
  #socket: net.Socket;
  #received: Buffer = Buffer.alloc(0);
  #ended = false;
  #error: Error | null = null;
  #wake: (() => void) | null = null;
  #paused = false;

  private constructor(socket: net.Socket) {
    this.#socket = socket;
    this.#listen();
  }

  /** Opens a TCP connection and sends nothing. */
  static async connect(options: ConnectOptions): Promise<ScriptedClient> {
    const { port, host = '127.0.0.1', localAddress } = options;
    const socket = net.connect({
      host,
      port,
      noDelay: true,
      ...(localAddress !== undefined && { localAddress }),
    });
    await once(socket, 'connect');
    return new ScriptedClient(socket);
  }

  /** Connects and begins with a TLS handshake; `options` may leave ALPN out or spoil it. */
  static async connectDirectTls(
    options: ConnectOptions,
    tlsOptions: tls.ConnectionOptions = { ALPNProtocols: ['postgresql'] },
  ): Promise<ScriptedClient> {
    const client = await ScriptedClient.connect(options);
    await client.startTls(tlsOptions);
    return client;
  }

  /** Connects and logs in; throws when the login is refused. */
  static async login(options: ConnectOptions & LoginOptions): Promise<ScriptedClient> {
    const client = await ScriptedClient.connect(options);
    await client.login(options);
    return client;
  }

  get socket(): net.Socket {
    return this.#socket;
  }

  /** Bytes received and not yet read. */
  get bufferedBytes(): number {
    return this.#received.length;
  }

  // ---- sending ----

  /** Sends all parts in one write. */
  send(...parts: (Uint8Array | string)[]): void {
    this.#socket.write(
      Buffer.concat(parts.map((part) => (typeof part === 'string' ? Buffer.from(part) : part))),
    );
  }

  /** Sends a message of any type with any body; `declaredLength` makes its length lie. */
  sendFrame(type: string, body: Uint8Array | string = '', declaredLength?: number): void {
    this.send(frame(type, body, declaredLength));
  }

  /** Sends the bytes in pieces of `size`, each a write of its own in its own turn of the event loop. */
  async sendInPieces(bytes: Uint8Array, size = 1): Promise<void> {
    for (let at = 0; at < bytes.length; at += size) {
      if (this.#socket.destroyed) return;
      this.#socket.write(bytes.subarray(at, at + size));
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  sendStartup(parameters: Record<string, string>, protocol?: number): void {
    this.send(encodeStartup(parameters, protocol));
  }

  sendSslRequest(): void {
    this.send(SSL_REQUEST);
  }

  sendGssencRequest(): void {
    this.send(requestPacket(RequestCode.GSSENCRequest));
  }

  sendCancelRequest(processId: number, secret: Uint8Array): void {
    this.send(encodeCancelRequest(processId, secret));
  }

  sendPassword(password: string): void {
    this.send(encodePassword(password));
  }

  sendQuery(sql: string): void {
    this.send(encodeQuery(sql));
  }

  /** Parse, Bind, Describe, Execute of one query, without Sync. */
  sendExtended(query: ExtendedQuery): void {
    this.send(...extendedFrames(query));
  }

  sendSync(): void {
    this.send(SYNC);
  }

  // ---- reading ----

  /** The next `count` bytes, whatever they are. */
  async readBytes(count: number, timeoutMs: number = READ_TIMEOUT_MS): Promise<Buffer> {
    await this.#until(() => this.#received.length >= count, `${count} bytes`, timeoutMs);
    return this.#take(count);
  }

  /** The next message. */
  async readFrame(timeoutMs: number = READ_TIMEOUT_MS): Promise<ReceivedFrame> {
    const header = await this.readBytes(5, timeoutMs);
    const body = await this.readBytes(header.readInt32BE(1) - 4, timeoutMs);
    return { type: String.fromCharCode(header[0] as number), body };
  }

  /** The next message's body; throws, with the error's text if it is one, when it has another type. */
  async expect(type: string): Promise<Buffer> {
    const received = await this.readFrame();
    if (received.type === type) return received.body;
    const words = received.type === 'E' ? ` (${errorWords(toError(received.body))})` : '';
    throw new Error(`expected a message '${type}', got '${received.type}'${words}`);
  }

  /** The messages of exactly these types, in this order. */
  async expectTypes(types: string): Promise<ReceivedFrame[]> {
    const frames: ReceivedFrame[] = [];
    for (const type of types) frames.push({ type, body: await this.expect(type) });
    return frames;
  }

  async expectError(): Promise<ReceivedError> {
    return toError(await this.expect('E'));
  }

  /** An ErrorResponse, then the end of the connection, and not one byte between or after. */
  async expectFatal(): Promise<ReceivedError> {
    const error = await this.expectError();
    const rest = await this.readToEnd();
    if (rest.length > 0) throw new Error(`${rest.length} bytes came after the FATAL error`);
    return error;
  }

  /** All messages up to and including ReadyForQuery, decoded. */
  async readReply(timeoutMs: number = READ_TIMEOUT_MS): Promise<Reply> {
    const frames: ReceivedFrame[] = [];
    do frames.push(await this.readFrame(timeoutMs));
    while (frames.at(-1)?.type !== 'Z');
    return toReply(frames);
  }

  /** Resolves with what was left to read when the other side closed or broke the connection. */
  async readToEnd(timeoutMs: number = READ_TIMEOUT_MS): Promise<Buffer> {
    const startedAtMs = performance.now();
    while (!this.#ended) {
      if (performance.now() - startedAtMs > timeoutMs) throw new Error('the connection was not closed');
      await this.#more(timeoutMs);
    }
    return this.#take(this.#received.length);
  }

  /** Reads nothing more from the socket until `resume()`: a slow reader. */
  pause(): void {
    this.#paused = true;
    this.#socket.pause();
  }

  resume(): void {
    this.#paused = false;
    this.#socket.resume();
  }

  // ---- conversations ----

  /** SSLRequest, 'S', handshake. */
  async requestTls(options: tls.ConnectionOptions = {}): Promise<void> {
    this.sendSslRequest();
    const answer = (await this.readBytes(1)).toString('latin1');
    if (answer !== 'S') throw new Error(`SSLRequest was answered '${answer}'`);
    await this.startTls(options);
  }

  /** A TLS handshake on the connection as it is; the certificate is not checked unless `options` say so. */
  async startTls(options: tls.ConnectionOptions = {}): Promise<void> {
    for (const event of ['data', 'end', 'close', 'error']) this.#socket.removeAllListeners(event);
    const secure = tls.connect({ socket: this.#socket, rejectUnauthorized: false, ...options });
    this.#socket = secure;
    this.#listen();
    let secured = false;
    secure.once('secureConnect', () => {
      secured = true;
      this.#wake?.();
    });
    await this.#until(() => secured, 'the TLS handshake', READ_TIMEOUT_MS);
  }

  /** Startup, whatever proof is asked for, and everything up to ReadyForQuery; throws when refused. */
  async login(options: LoginOptions): Promise<LoginReply> {
    const { user, database, password = '' } = options;
    this.sendStartup(
      { user, ...(database !== undefined && { database }), ...options.parameters },
      options.protocol,
    );
    await this.authenticate(user, password);
    return this.readWelcome();
  }

  /** Answers the authentication requests until AuthenticationOk; throws when refused. */
  async authenticate(user: string, password: string): Promise<void> {
    let scram: ScramClient | null = null;
    for (;;) {
      const received = await this.readFrame();
      if (received.type === 'v') continue;
      if (received.type === 'E') throw new Error(errorWords(toError(received.body)));
      if (received.type !== 'R') throw new Error(`unexpected message '${received.type}' during login`);
      const request = decodeAuthentication(received.body, 0, received.body.length);
      switch (request.kind) {
        case 'ok':
          return;
        case 'cleartext':
          this.sendPassword(password);
          break;
        case 'md5':
          this.sendPassword(md5Password(user, password, request.salt));
          break;
        case 'sasl':
          scram = new ScramClient(password);
          this.send(encodeSASLInitialResponse('SCRAM-SHA-256', scram.first()));
          break;
        case 'sasl-continue':
          this.send(encodeSASLResponse((scram as ScramClient).final(request.data.toString())));
          break;
        case 'sasl-final':
          (scram as ScramClient).check(request.data.toString());
          break;
        default:
          throw new Error(`authentication request ${request.request} is not known here`);
      }
    }
  }

  /** What follows AuthenticationOk, up to ReadyForQuery. */
  async readWelcome(): Promise<LoginReply> {
    const parameters = new Map<string, string>();
    let processId = 0;
    let secretKey: Buffer = Buffer.alloc(0);
    for (;;) {
      const { type, body } = await this.readFrame();
      if (type === 'S') {
        const { name, value } = decodeParameterStatus(body, 0, body.length);
        parameters.set(name, value);
      } else if (type === 'K') {
        processId = body.readInt32BE(0);
        secretKey = body.subarray(4);
      } else if (type === 'Z') {
        return { parameters, processId, secretKey, status: body.toString('latin1') };
      } else if (type === 'E') {
        throw new Error(errorWords(toError(body)));
      }
    }
  }

  /** A simple query and its whole reply. */
  async query(sql: string): Promise<Reply> {
    this.sendQuery(sql);
    return this.readReply();
  }

  /** Parse, Bind, Describe, Execute, Sync, and the whole reply. */
  async extended(query: ExtendedQuery): Promise<Reply> {
    this.send(...extendedFrames(query), SYNC);
    return this.readReply();
  }

  /** Terminate, then the end of the connection. */
  async terminate(): Promise<void> {
    if (!this.#ended) this.#socket.end(TERMINATE);
    await this.readToEnd();
  }

  /** Sends what is pending, then FIN. */
  end(): void {
    this.#socket.end();
  }

  /** Breaks the connection without a word; safe at any time. */
  destroy(): void {
    this.#socket.destroy();
  }

  #take(count: number): Buffer {
    const bytes = this.#received.subarray(0, count);
    this.#received = this.#received.subarray(count);
    return bytes;
  }

  async #until(condition: () => boolean, what: string, timeoutMs: number): Promise<void> {
    const startedAtMs = performance.now();
    while (!condition()) {
      if (this.#ended) {
        const why = this.#error === null ? '' : ` (${this.#error.message})`;
        throw new Error(`the connection ended before ${what} came${why}`);
      }
      if (performance.now() - startedAtMs > timeoutMs) throw new Error(`${what} did not come in time`);
      await this.#more(timeoutMs);
    }
  }

  async #more(timeoutMs: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, timeoutMs);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.#wake = null;
  }

  #listen(): void {
    const end = (): void => {
      this.#ended = true;
      this.#wake?.();
    };
    this.#socket.on('data', (chunk: Buffer) => {
      this.#received = this.#received.length === 0 ? chunk : Buffer.concat([this.#received, chunk]);
      this.#wake?.();
    });
    this.#socket.on('end', end);
    this.#socket.on('close', end);
    this.#socket.on('error', (error: Error) => {
      this.#error = error;
    });
    if (!this.#paused) this.#socket.resume();
  }
}

/** A message of any type and body. */
export function frame(type: string, body: Uint8Array | string = '', declaredLength?: number): Buffer {
  const bytes = typeof body === 'string' ? Buffer.from(body) : body;
  const header = Buffer.alloc(5);
  header.write(type, 'latin1');
  header.writeInt32BE(declaredLength ?? bytes.length + 4, 1);
  return Buffer.concat([header, bytes]);
}

/** A packet without a type: length, code, and what follows. */
export function requestPacket(code: number, rest: Uint8Array = Buffer.alloc(0)): Buffer {
  const header = Buffer.alloc(8);
  header.writeInt32BE(rest.length + 8, 0);
  header.writeInt32BE(code, 4);
  return Buffer.concat([header, rest]);
}

/** The password as AuthenticationMD5Password wants it. */
export function md5Password(user: string, password: string, salt: Uint8Array): string {
  const inner = createHash('md5')
    .update(password + user)
    .digest('hex');
  return `md5${createHash('md5').update(inner).update(salt).digest('hex')}`;
}

function extendedFrames(query: ExtendedQuery): Buffer[] {
  const statement = query.statement ?? '';
  return [
    ...(query.prepared === true ? [] : [encodeParse(statement, query.sql)]),
    encodeBind('', statement, query.values ?? []),
    encodeDescribe('P', ''),
    encodeExecute('', query.maxRows ?? 0),
  ];
}

/** Closes a prepared statement; to be sent in front of a Sync. */
export function closeStatement(name: string): Buffer {
  return encodeClose('S', name);
}

/** The fields of an ErrorResponse or NoticeResponse. */
export function toError(body: Buffer): ReceivedError {
  const fields = decodeErrorFields(body, 0, body.length);
  return {
    severity: fields.get('V') ?? '',
    code: fields.get('C') ?? '',
    message: fields.get('M') ?? '',
    detail: fields.get('D'),
    hint: fields.get('H'),
  };
}

function errorWords(error: ReceivedError): string {
  return `${error.severity} ${error.code} ${error.message}`;
}

function toReply(frames: ReceivedFrame[]): Reply {
  const rows: (string | null)[][] = [];
  const tags: string[] = [];
  const notices: ReceivedError[] = [];
  let columns: string[] = [];
  let error: ReceivedError | null = null;
  for (const { type, body } of frames) {
    if (type === 'D') rows.push(decodeDataRow(body, 0, body.length));
    else if (type === 'T') columns = decodeRowDescription(body, 0, body.length);
    else if (type === 'C') tags.push(decodeCommandComplete(body, 0, body.length));
    else if (type === 'E') error ??= toError(body);
    else if (type === 'N') notices.push(toError(body));
  }
  const status = frames.at(-1)?.body.toString('latin1') ?? '';
  const types = frames.map(({ type }) => type).join('');
  return { types, frames, rows, columns, tags, error, notices, status };
}
